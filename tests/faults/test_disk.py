"""Faults 7, 8, 9: a disk that is full or read-only, and files that may not grow.

tests/commands/test_bad_input.py has `dpo train` with a read-only directory of runs.
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import pytest

from dpo_cli.run.directory import RunDirectory
from dpo_cli.run.events import Alert, EventReader, Failed, Resumed, Saved
from dpo_cli.run.lookup import find_runs
from tests.faults.conftest import arguments
from tests.support import workers
from tests.support.cli import DPO, run_in
from tests.support.process_faults import (
    assert_goes_on_and_ends_equal,
    limit_files,
    limit_stream_at,
    mounting,
)


def test_a_full_disk_ends_with_75_and_the_run_goes_on_later(
    shared: Path, tmp_path: Path, stopped: RunDirectory, whole: RunDirectory
) -> None:
    """The test mounts a file system with room for two and a half checkpoints."""
    checkpoint, _ = stopped.newest_verified()
    assert checkpoint is not None
    state_bytes = sum(file.stat().st_size for file in checkpoint.path.iterdir())
    [weights] = stopped.path.glob("rlhf_*.pth")
    small = state_bytes * 5 // 2 + weights.stat().st_size
    script = """
        mount -t tmpfs -o size=$1 none runs || exit 99
        "${@:2}"; echo "code $?"
        cp -a runs then
        mount -o remount,size=$(($1 * 2)) runs
        "${@:2:3}" resume; echo "code $?"
        cp -a runs now
    """
    (tmp_path / "runs").mkdir()
    result = run_in(tmp_path, mounting(script, str(small), *DPO, *arguments(shared)))
    codes = re.findall(r"^code (\d+)", result.stdout, flags=re.MULTILINE)
    assert codes == ["75", "0"], result.stdout + result.stderr
    assert "error: no space left to write in" in result.stderr
    assert "help: Free some space" in result.stderr
    assert "Traceback" not in result.stderr

    [then], [now] = find_runs(tmp_path / "then"), find_runs(tmp_path / "now")
    last, passed_over = then.newest_verified()
    assert last is not None
    assert passed_over == []
    events = list(EventReader(then.events_path).read_new())
    saved = [e for e in events if isinstance(e, Saved)]
    [alert] = [e for e in events if isinstance(e, Alert) and e.code == "disk-filling"]
    assert events.index(alert) < events.index(saved[0])
    assert last.optimizer_step == saved[-1].optimizer_step > 0
    [resumed] = [e for e in EventReader(now.events_path).read_new() if isinstance(e, Resumed)]
    assert resumed.optimizer_step == last.optimizer_step
    workers.assert_equal(now, whole)


WITHOUT_PRIVILEGE = (
    "setpriv --bounding-set=-dac_override,-dac_read_search"
    " --inh-caps=-dac_override,-dac_read_search"
)
"""Runs a command as root without the right to ignore permissions."""
LIMITS = {
    "the half-precision weights": lambda run: partial(limit_files, 600_000),
    "the state": lambda run: partial(limit_files, 1_500_000),
    "the stream": lambda run: partial(limit_stream_at, 7, run.events_path),
}


@pytest.mark.parametrize("what", LIMITS)
def test_a_file_size_limit(half: RunDirectory, whole: RunDirectory, what: str) -> None:
    """SIGXFSZ kills no worker, whichever file reaches the limit first."""
    before, _ = half.newest_verified()
    assert workers.work(half, LIMITS[what](half)) == 75
    checkpoint, passed_over = half.newest_verified()
    assert (checkpoint, passed_over) == (before, []) or what == "the stream"
    assert "Traceback" not in half.worker_log_path.read_text()
    *_, last = EventReader(half.events_path).read_new()
    if what != "the stream":  # the stream had no space for the event
        assert isinstance(last, Failed)
        assert "no space left" in last.message
        assert "file size limit" in last.remedy
    assert half.events_path.read_bytes().endswith(b"\n")
    assert_goes_on_and_ends_equal(half, whole)


def test_a_file_size_limit_that_leaves_no_room_for_words(
    half: RunDirectory, whole: RunDirectory, tmp_path: Path
) -> None:
    """The worker can only return its exit code; the launcher prints the error."""
    blanks = -half.events_path.stat().st_size % 1024
    with half.events_path.open("ab") as stream:
        stream.write(b"\n" * blanks)
    size_bytes = half.events_path.stat().st_size
    limited = f'ulimit -f {size_bytes // 1024}; exec "$@"'
    result = run_in(tmp_path, ["bash", "-c", limited, "bash", *DPO, "resume", half.name])
    assert result.returncode == 75, result.stdout + result.stderr
    assert "error: no space left to write in" in result.stderr
    assert "file size limit" in result.stderr
    assert half.events_path.stat().st_size == size_bytes
    assert_goes_on_and_ends_equal(half, whole)


READ_ONLY = {
    "the file system": "mount --bind runs runs && mount -o remount,ro,bind runs || exit 99",
    # The lock file can still be written and locked there.
    "the directory": "chmod 555 runs/*",
    "the directory of the states": "chmod 555 runs/*/checkpoints",
}


@pytest.mark.parametrize("what", READ_ONLY)
def test_a_read_only_run_is_refused_before_anything_is_loaded(
    half: RunDirectory, whole: RunDirectory, tmp_path: Path, what: str
) -> None:
    stream = half.events_path.read_bytes()
    # A torch that cannot be imported, so an import would fail the test.
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was imported')")
    script = f'{READ_ONLY[what]}\n{WITHOUT_PRIVILEGE} "$@"'
    result = run_in(tmp_path, mounting(script, *DPO, "resume", half.name, "--plain"))
    assert result.returncode == 1, result.stdout + result.stderr
    assert f"error: cannot write in runs/{half.name}" in result.stderr
    assert "help: Make it writable" in result.stderr
    assert half.events_path.read_bytes() == stream
    for directory in (half.path, half.checkpoints_path):
        directory.chmod(0o755)
    assert_goes_on_and_ends_equal(half, whole)
