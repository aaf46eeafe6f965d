"""Standard streams that are closed, full or gone, and a working directory that was removed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from dpo_cli import app
from dpo_cli.run.directory import RunDirectory
from tests.support.cli import DPO, run_in


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_dpo_works_with_closed_streams(tmp_path: Path, closed: str) -> None:
    done = run_in(tmp_path, ["bash", "-c", f'"$@" {closed}', "bash", *DPO, "runs"])
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == ("" if ">&-" in closed.split() else NO_RUNS)


NO_RUNS = "there are no runs in runs\nstart one: dpo train PROFILE\n"


def test_a_lock_is_no_standard_stream_and_survives_a_detached_launcher(tmp_path: Path) -> None:
    """Regression: a lock with descriptor 0 was lost when the launcher opened /dev/null as input."""
    run = RunDirectory.create(tmp_path, "dense", "")
    code = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from dpo_cli.run.directory import RunDirectory\n"
        "from dpo_cli.run.launch import detach\n"
        "run = RunDirectory(Path(sys.argv[1]))\n"
        "lock = run.lock()\n"
        "assert lock > 2 and os.get_inheritable(0)\n"
        "pid = detach(run, lock)\n"
        "if pid == 0:\n"
        "    held = str(os.getpid()) in (RunDirectory(run.path).holder() or '')\n"
        "    (run.path / 'held').write_text(str(held))\n"
        "    os._exit(0)\n"
        "os.waitpid(pid, 0)\n"
    )
    shell = ["bash", "-c", '"$@" <&- >&- 2>&-', "bash", sys.executable, "-c", code, str(run.path)]
    assert run_in(tmp_path, shell).returncode == 0
    assert (run.path / "held").read_text() == "True"
    assert run.holder() is None


@pytest.mark.parametrize("arguments", [["runs"], ["schema"]])
def test_a_full_output_is_an_error_of_two_lines(tmp_path: Path, arguments: list[str]) -> None:
    """Short output fails at the final flush, long output while it is printed."""
    command = ["bash", "-c", '"$@" > /dev/full', "bash", *DPO, *arguments]
    done = run_in(tmp_path, command)
    assert done.returncode == 1
    assert done.stderr.startswith(
        "error: cannot read or write standard output: No space left on device\nhelp: "
    )
    assert done.stderr.count("\n") == 2


def test_a_removed_working_directory_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert app.main(["train", "demo"]) == 1
    assert capsys.readouterr().err == (
        "error: the working directory was removed\nhelp: Change to a directory that exists.\n"
    )


def test_errors_of_the_system_are_no_bugs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(path: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_dir", fail)
    assert app.main(["runs", "--runs-dir", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: cannot read or write {tmp_path}: Permission denied\nhelp: ")
