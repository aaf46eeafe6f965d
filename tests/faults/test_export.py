"""Fault 30: an export that is killed leaves the old file or the new one, never a part."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
import torch

from dpo_cli.export.export import export_run
from dpo_cli.export.verified_write import rename_on_success
from dpo_cli.run.directory import RunDirectory
from dpo_cli.run.events import Exported, history
from tests.support import data_faults, workers
from tests.support.cli import Run, run_in
from tests.support.run_content import content

MOMENTS = [
    "before a byte is written",
    "in the middle of the file",
    "before it is read back",
    "before it gets its name",
    "after it got its name",
]


def export(run: RunDirectory, file: Path) -> None:
    export_run(run, file, None, force=True)


def killed_export(run: RunDirectory, file: Path, moment: str) -> None:
    data_faults.kill_export(moment, file)
    export(run, file)


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("before", [b"what was there before", None])
def test_a_killed_export(
    half: RunDirectory, tmp_path: Path, moment: str, before: bytes | None
) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    file = folder / "rlhf_64.pth"
    if before is not None:
        file.write_bytes(before)
    run_before = content(half.path)
    assert workers.call(partial(killed_export, half, file, moment)) == -signal.SIGKILL
    assert content(half.path) == run_before
    if moment == "after it got its name":
        whole = file.read_bytes()
    else:
        whole = b""
        assert (file.read_bytes() if file.exists() else None) == before
        assert len(list(folder.iterdir())) == (before is not None) + 1  # leftover files

    # The next export removes them, and ends as usual.
    (folder / ".other.pth.0123.partial").mkdir()
    (folder / ".other.pth.0123.partial" / "other.pth").write_bytes(b"of another file")
    assert workers.call(partial(export, half, file)) == 0
    assert sorted(os.listdir(folder)) == [".other.pth.0123.partial", "rlhf_64.pth"]
    assert not whole or file.read_bytes() == whole
    state = torch.load(file)
    assert set(state) == set(Run(half).weights)
    for name, tensor in Run(half).weights.items():
        assert torch.equal(state[name], tensor.half()), name
    [event] = [event for event in history(half.events_path) if isinstance(event, Exported)]
    assert event.path == str(file)


def test_a_killed_dpo_export(half: RunDirectory, tmp_path: Path) -> None:
    file = tmp_path / "rlhf_64.pth"
    file.write_bytes(b"what was there before")
    script = f"""
from pathlib import Path
from tests.support import data_faults
import dpo_cli.export.export
data_faults.kill_export("before it gets its name", Path({str(file)!r}))
from dpo_cli import app
app.main(["export", {str(half.path)!r}, "--to", {str(file)!r}, "--force"])
"""
    result = run_in(tmp_path, [sys.executable, "-c", script])
    assert result.returncode == -signal.SIGKILL, result.stderr
    assert file.read_bytes() == b"what was there before"
    assert len(list(tmp_path.glob(".rlhf_64.pth.*.partial/rlhf_64.pth"))) == 1
    assert workers.call(partial(export, half, file)) == 0
    assert not list(tmp_path.glob(".*"))
    assert set(torch.load(file)) == set(Run(half).weights)


def test_an_export_leaves_files_of_a_running_export_alone(tmp_path: Path) -> None:
    """Negative control of the cleanup: it removes only files of dead processes."""
    file = tmp_path / "rlhf_[64].pth"
    with rename_on_success(file) as first:
        first.write_text("first")
        with rename_on_success(file) as second:
            second.write_text("second")
            assert first.read_text() == "first"
        assert file.read_text() == "second"
    assert file.read_text() == "first"
    assert os.listdir(tmp_path) == [file.name]
    with suppress(ValueError), rename_on_success(file) as third:
        third.write_text("half")
        raise ValueError("a bug")
    assert os.listdir(tmp_path) == [file.name]
    assert file.read_text() == "first"
