"""Files that a command was asked to write."""

from __future__ import annotations

from pathlib import Path

from dpo_cli.errors import DpoError
from dpo_cli.files import write_atomically
from dpo_cli.run.disk import is_no_space, no_space


def write_output(path: Path, content: bytes) -> None:
    """Write a file whole, or leave what was there.

    Raises:
        NoSpaceError: the disk is full.
        DpoError: it cannot be written.
    """
    try:
        write_atomically(path, lambda temporary: _write(temporary, content))
    except OSError as error:
        if is_no_space(error):
            raise no_space(path.parent) from error
        raise DpoError(f"cannot write {path}: {error.strerror}") from error


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)
