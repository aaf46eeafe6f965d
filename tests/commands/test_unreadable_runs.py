"""Tests of unreadable runs: each gives one line, and commands on other runs work."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dpo_cli.errors import DpoError
from dpo_cli.run.directory import RunDirectory
from dpo_cli.run.event_writer import EventWriter
from dpo_cli.run.events import EventReader, Stopped, history
from dpo_cli.run.lookup import find_run, find_runs, list_runs
from dpo_cli.run.summary import summarize
from dpo_cli.run.view import RunState
from tests.commands.conftest import Cli
from tests.support import story

END = Stopped(reason="interrupted", step=110, optimizer_step=55)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Directory with one intact run."""
    story.write(tmp_path / "runs", "fine", *story.preparation(), END)
    return tmp_path / "runs"


@pytest.fixture
def odd(root: Path) -> RunDirectory:
    """Second run, which a test damages."""
    return story.write(root, "odd", *story.preparation(), END)


def fifo(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def directory(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.mkdir()


def device(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to("/dev/zero")


def without_end(path: Path) -> None:
    path.write_bytes(b"x" * (20 << 20))


def nested(path: Path) -> None:
    path.write_bytes(b"[" * 100_000 + b"\n")


def no_json(path: Path) -> None:
    path.write_bytes(b"\xff\x00\n{\n")


ODD = (fifo, directory, device, without_end, nested, no_json)
FILES = (
    "skipped_rows.jsonl",
    "events.jsonl",
    "plan.json",
    "COMPLETED",
    "lock",
    "sweep.json",
    "torchrun.json",
)
COMMANDS = (["runs"], ["runs", "--json"], ["clean", "--dry-run"], ["show", "fine"])


@pytest.mark.parametrize("spoil", ODD)
def test_one_odd_file_spoils_no_command(
    dpo: Cli, root: Path, spoil: Callable[[Path], None]
) -> None:
    """Reading neither blocks, as on the writer of a FIFO, nor continues without end."""
    for number, name in enumerate(FILES):
        spoil(story.write(root, f"odd{number}", *story.preparation(), END).path / name)
    for command in COMMANDS:
        code, out, err = dpo(*command, "--runs-dir", str(root))
        assert (code, err) == (0, ""), command
        assert "fine" in out or command[0] == "clean"
    for number in range(len(FILES)):
        run = f"odd{number}"
        for command in (["show", run], ["report", run, "--out", str(root / "page.html")]):
            code, _, err = dpo(*command, "--runs-dir", str(root))
            assert "bug in dpo" not in err
            assert code in (0, 1)
            assert err.count("\n") == (2 if code else 0), err


@pytest.mark.parametrize("spoil", [fifo, directory, device])
def test_a_stream_that_is_no_file_is_named(
    root: Path, odd: RunDirectory, spoil: Callable[[Path], None]
) -> None:
    spoil(odd.events_path)
    summary = summarize(odd)
    assert summary.state is RunState.UNREADABLE
    assert summary.problem == "events.jsonl: not a regular file"
    for read in (history, lambda path: EventReader(path).read_new()):
        with pytest.raises(DpoError, match=r"events\.jsonl cannot be read"):
            list(read(odd.events_path))
    with pytest.raises(OSError):  # noqa: PT011 - depends on the kind of file
        EventWriter(odd.events_path)


@pytest.fixture
def private(odd: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunDirectory]:
    """The directory belongs to another user. Simulated, because tests may run as root."""
    stat, open_file = os.stat, os.open

    def refuse(function: Callable[..., Any]) -> Callable[..., Any]:
        def checked(path: Any, *arguments: Any, **options: Any) -> Any:
            if isinstance(path, str | os.PathLike) and odd.name + os.sep in os.fspath(path):
                raise PermissionError(errno.EACCES, "Permission denied", os.fspath(path))
            return function(path, *arguments, **options)

        return checked

    with monkeypatch.context() as patched:
        patched.setattr(os, "stat", refuse(stat))
        patched.setattr(os, "open", refuse(open_file))
        yield odd


def test_a_private_run_is_one_line(dpo: Cli, root: Path, private: RunDirectory) -> None:
    assert [run.name for run in find_runs(root)] == [p.name for p in root.glob("fine-*")]
    assert private in list_runs(root)
    code, out, err = dpo("runs", "--runs-dir", str(root))
    assert (code, err) == (0, "")
    [line] = [line for line in out.splitlines() if line.startswith(private.name)]
    assert "cannot be read (profile.toml: Permission denied)" in line
    rows = json.loads(dpo("runs", "--json", "--runs-dir", str(root))[1])
    assert {row["state"] for row in rows} == {"cannot be read", "stopped"}
    for command in (["clean"], ["show", "fine"], ["stop"]):
        assert dpo(*command, "--runs-dir", str(root))[0] == 0


@pytest.mark.parametrize("by_path", [False, True])
def test_a_private_run_is_no_missing_run(root: Path, private: RunDirectory, by_path: bool) -> None:
    query = f"{private.path}/" if by_path else private.name
    with pytest.raises(DpoError, match=r"cannot be read: Permission denied"):
        find_run(root, query)


def test_other_directories_without_permission_are_no_runs(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "lost+found").mkdir()
    is_file = Path.is_file

    def refuse(path: Path) -> bool:
        if "lost+found" in path.parts:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return is_file(path)

    monkeypatch.setattr(Path, "is_file", refuse)
    assert [run.profile_name for run in list_runs(root)] == ["fine"]


@pytest.fixture
def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The file system has no locks, like NFS mounted without them."""

    def refuse(file: Any, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)


@pytest.mark.usefixtures("no_locks")
def test_without_locks_looking_works_and_training_is_refused(
    dpo: Cli, root: Path, odd: RunDirectory
) -> None:
    odd.lock_path.touch()
    assert odd.holder() is None
    for command in (["runs"], ["show", "odd"], ["stop"]):
        assert dpo(*command, "--runs-dir", str(root))[0] == 0
    with pytest.raises(DpoError) as caught:
        odd.lock()
    assert "No locks available, as on NFS that is mounted without locks" in caught.value.message
    assert "--runs-dir" in caught.value.remedy
    code, _, err = dpo("clean", "odd", "--runs-dir", str(root))
    assert (code, err) == (0, "")  # there is nothing to remove


@pytest.mark.usefixtures("no_locks")
def test_without_locks_it_is_unknown_whether_a_run_trains(root: Path) -> None:
    run = story.write(root, "open", *story.preparation())
    run.lock_path.touch()
    summary = summarize(run)
    assert summary.state is RunState.UNKNOWN
    assert summary.problem == "No locks available"


def test_linked_folders_are_not_cleaned(root: Path, odd: RunDirectory) -> None:
    """Unfinished files of other programs, with the same names, stay."""
    victim = root / "victim"
    victim.mkdir()
    for name in ("config.json", ".tmpAb12Cd", f".x.{'0' * 32}.tmp"):
        (victim / name).touch()
    before = sorted(path.name for path in victim.iterdir())
    (odd.path / "rlhf").symlink_to(victim)
    assert list(odd.torn_files()) == []
    odd.remove_leftovers()
    assert sorted(path.name for path in victim.iterdir()) == before
    (odd.path / "rlhf").unlink()
    shutil.copytree(victim, odd.path / "rlhf")
    assert len(list(odd.torn_files())) == 2


def test_linked_checkpoints_are_not_written(root: Path, odd: RunDirectory) -> None:
    victim = root / "victim"
    (victim / "tmp-of-another").mkdir(parents=True)
    odd.checkpoints_path.rmdir()
    odd.checkpoints_path.symlink_to(victim)
    with pytest.raises(DpoError, match=r"checkpoints is a link, and dpo does not write"):
        odd.lock()
    assert (victim / "tmp-of-another").is_dir()
