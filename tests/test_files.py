"""Files that are none: devices, FIFOs and links where a file is read, written or removed."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from dpo_cli.errors import DpoError
from dpo_cli.files import (
    glob_inside,
    is_special,
    open_for_appending,
    open_regular,
    write_atomically,
    write_text_atomically,
)
from dpo_cli.run.disk import explain_disk_errors


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
    """Without waiting: a FIFO without a writer blocks its readers for ever."""
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


def test_a_glob_stays_inside(tmp_path: Path) -> None:
    outside, inside = tmp_path / "outside", tmp_path / "inside"
    for folder in (outside / "logs", inside / "own/logs"):
        folder.mkdir(parents=True)
    (inside / "linked").symlink_to(outside)
    (inside / "own/last").symlink_to(outside)
    assert sorted(glob_inside(inside, "*/logs")) == [inside / "own/logs"]
    # A link as the last part is a match: whoever removes it removes the link alone.
    assert list(glob_inside(inside, "own/last")) == [inside / "own/last"]


def test_a_file_is_as_readable_as_any_other(tmp_path: Path) -> None:
    """safetensors writes with mode 0600 what other users and containers shall load."""
    (tmp_path / "other").touch()
    write_atomically(tmp_path / "x", lambda path: os.close(os.open(path, os.O_CREAT, 0o600)))
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("other", "x")}
    assert len(modes) == 1
