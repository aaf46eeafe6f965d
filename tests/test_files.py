"""Special files (devices, FIFOs, links), and files that a full disk truncates."""

from __future__ import annotations

import os
import resource
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dpo_cli import app
from dpo_cli.commands.console import write_output
from dpo_cli.errors import DpoError, NoSpaceError
from dpo_cli.files import (
    expanded,
    glob_inside,
    is_special,
    open_for_appending,
    open_regular,
    write_atomically,
    write_text_atomically,
)
from dpo_cli.run import checkpoints
from dpo_cli.run.disk import explain_disk_errors
from dpo_cli.run.event_writer import EventWriter
from dpo_cli.run.events import Stopped


@pytest.fixture(params=["fifo", "socket-like device", "link to a device"])
def special(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "special"
    if request.param == "fifo":
        os.mkfifo(path)
    elif request.param == "link to a device":
        path.symlink_to("/dev/null")
    else:
        path = Path("/dev/null")
    return path


def test_special_files_are_not_replaced(special: Path) -> None:
    before = special.lstat()
    assert is_special(special)
    with pytest.raises(DpoError, match="not a regular file"), explain_disk_errors(special.parent):
        write_text_atomically(special, "text")
    assert (special.lstat().st_ino, special.lstat().st_mode) == (before.st_ino, before.st_mode)


def test_special_files_are_neither_read_nor_appended_to(special: Path) -> None:
    """Reading does not block: a FIFO without a writer would block its readers forever."""
    with pytest.raises(OSError, match="not a regular file"):
        open_regular(special)
    with pytest.raises(OSError):  # noqa: PT011 - the kernel's own for a FIFO and for a link
        open_for_appending(special)


def test_the_standard_streams_are_special_wherever_they_lead() -> None:
    assert is_special(Path("/dev/stdout"))
    assert is_special(Path("/dev/fd/1"))


def test_files_links_and_free_names_are_not_special(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "dangling").symlink_to("nowhere")
    for name in ("file", "link", "dangling", "free", "."):
        assert not is_special(tmp_path / name)


def test_the_home_of_an_unknown_user_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert expanded("~/out") == Path("/home/me/out")
    assert expanded("~no-such-user/out") == Path("~no-such-user/out")


def test_a_glob_stays_inside(tmp_path: Path) -> None:
    outside, inside = tmp_path / "outside", tmp_path / "inside"
    for folder in (outside / "logs", inside / "own/logs"):
        folder.mkdir(parents=True)
    (inside / "linked").symlink_to(outside)
    (inside / "own/last").symlink_to(outside)
    assert sorted(glob_inside(inside, "*/logs")) == [inside / "own/logs"]
    # A link is a match as the last part: removing the match removes only the link.
    assert list(glob_inside(inside, "own/last")) == [inside / "own/last"]


def test_a_file_is_as_readable_as_any_other(tmp_path: Path) -> None:
    """Other users and containers can read the file, although safetensors writes with mode 0600."""
    (tmp_path / "other").touch()
    write_atomically(tmp_path / "x", lambda path: os.close(os.open(path, os.O_CREAT, 0o600)))
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("other", "x")}
    assert len(modes) == 1


@contextmanager
def small_files() -> Iterator[None]:
    """With a limit of 10 bytes per file, write() fails like on a full disk, without a file name."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_an_error_of_write_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "profile.toml"
    with small_files(), pytest.raises(OSError, match="File too large") as raised:
        write_text_atomically(path, "0123456789 and more")
    assert raised.value.filename == str(path)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_names_the_report_and_the_part_of_a_checkpoint(tmp_path: Path) -> None:
    with small_files(), pytest.raises(NoSpaceError) as raised:
        write_output(tmp_path / "report.html", b"0123456789 and more")
    assert raised.value.details == (f"while writing {tmp_path / 'report.html'}",)
    with small_files(), pytest.raises(NoSpaceError) as raised:
        checkpoints.commit(tmp_path, 1, lambda folder: (folder / "state").touch())
    [detail] = raised.value.details
    assert detail.startswith(f"while writing {tmp_path}/tmp-")
    assert detail.endswith("/manifest.json")


def test_a_full_disk_names_the_event_stream(tmp_path: Path) -> None:
    writer = EventWriter(tmp_path / "events.jsonl")
    with small_files(), pytest.raises(OSError) as raised:  # noqa: PT011 - the name is checked
        writer.append(Stopped(reason="interrupted", step=3, optimizer_step=3))
    assert raised.value.filename == str(tmp_path / "events.jsonl")
    assert (tmp_path / "events.jsonl").read_bytes() == b""


def test_the_command_line_names_the_file_that_a_full_disk_cuts_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with small_files():
        assert app.main(["init", "my", "--template", "demo"]) == 75
    assert capsys.readouterr().err.splitlines()[:2] == [
        "error: no space left to write in profiles",
        "  while writing profiles/dpo.schema.json",
    ]
