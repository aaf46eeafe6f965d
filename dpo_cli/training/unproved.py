"""Where an export is written until it is proved: beside its place, under a name of nobody's."""

from __future__ import annotations

import fcntl
import glob
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dpo_cli.files import fsync_path, swap


@contextmanager
def renamed_at_the_end(path: Path) -> Iterator[Path]:
    """A name for a file or a directory that becomes `path` if nothing goes wrong.

    What had that name is replaced in one moment.
    """
    with _own_directory(path) as directory:
        new = directory / path.name
        yield new
        if path.is_dir():
            swap(new, path)  # the old one goes with the directory
        else:
            os.replace(new, path)
        fsync_path(path.parent)


@contextmanager
def _own_directory(path: Path) -> Iterator[Path]:
    """A directory beside `path` for a block; those that killed exports to `path` left are removed.

    It is locked, and the kernel frees the lock however the process ends.
    """
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.unproved"):
        with _locked(leftover, fcntl.LOCK_EX | fcntl.LOCK_NB) as is_abandoned:
            if is_abandoned:
                shutil.rmtree(leftover, ignore_errors=True)
    while True:
        directory = path.with_name(f".{path.name}.{uuid.uuid4().hex}.unproved")
        directory.mkdir()
        with _locked(directory, fcntl.LOCK_EX):
            if not directory.exists():  # removed by another export before it was locked
                continue
            try:
                yield directory
            finally:
                shutil.rmtree(directory, ignore_errors=True)
            return


@contextmanager
def _locked(directory: Path, operation: int) -> Iterator[bool]:
    """Lock a directory for a block, if it can be done; whether it was."""
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:  # gone meanwhile, or no directory
        yield False
        return
    try:
        is_locked = True
        try:
            fcntl.flock(descriptor, operation)
        except OSError:  # another has it, or the file system locks no directories
            is_locked = False
        yield is_locked
    finally:
        os.close(descriptor)
