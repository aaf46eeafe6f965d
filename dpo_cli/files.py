"""Atomic writing and hashing of files: after a crash there is the old file or the new one."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import hashlib
import os
import re
import shutil
import stat
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from io import BufferedReader
from pathlib import Path

from dpo_cli.errors import naming
from dpo_cli.machine import IS_WINDOWS, NO_FOLLOW, NO_WAIT, flush

_NOT_REGULAR = "not a regular file"
_CHUNK_BYTES = 1 << 20
_UNUSED_SECONDS = 30 * 24 * 3600
_CACHE_ENTRY = re.compile(r"\.?[0-9a-f]{64}")
_TEMPORARY = re.compile(r"\.(.+)\.[0-9a-f]{32}\.tmp")


def expanded(path: str | Path) -> Path:
    """Return a path with ~ or ~USER replaced by the home directory, if there is such a user."""
    return Path(os.path.expanduser(path))  # Path.expanduser raises if there is none


def open_regular(path: Path) -> BufferedReader:
    """Open a regular file for reading.

    Opening a FIFO would block, and reading a device might never end.

    Raises:
        OSError: the file cannot be opened, or is not a regular file (EINVAL).
    """
    return open(require_regular(os.open(path, os.O_RDONLY | NO_WAIT), path), "rb")


def read_regular(path: Path) -> bytes:
    """Read a regular file; raises as `open_regular`."""
    with open_regular(path) as file:
        return file.read()


def glob_inside(directory: Path, pattern: str) -> Iterator[Path]:
    """Glob without matches behind symbolic links, which may be outside the directory.

    Used for files to remove, so that no file outside the directory is removed.
    """
    for path in directory.glob(pattern):
        *between, _ = path.relative_to(directory).parents
        if not any((directory / part).is_symlink() for part in between):
            yield path


def is_special(path: Path) -> bool:
    """Return True for a path that must not be replaced by a file.

    Such a path is a device, a FIFO, a socket, or a link to one of them, or a link in /dev or /proc,
    for example /dev/stdout.
    """
    try:
        mode = path.stat().st_mode
    except OSError:  # no such file, or a broken link
        return False
    is_of_system = path.is_symlink() and path.absolute().parts[1:2] in (("dev",), ("proc",))
    return is_of_system or not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def would_replace(destination: Path, path: Path) -> bool:
    """Return True if a new file or directory at `destination` would replace `path`.

    It does if `destination` is the same file as `path`, or as a directory above it, also through
    links, hard links, and on file systems that ignore case.
    """
    with contextlib.suppress(OSError, ValueError):
        replaced = destination.stat()
        real = Path(os.path.realpath(path))
        for each in (path.absolute(), *path.absolute().parents, real, *real.parents):
            with contextlib.suppress(OSError):
                if os.path.samestat(each.stat(), replaced):
                    return True
    return False


def is_not_regular(error: OSError) -> bool:
    """Return True for the errors of `require_regular`, and of opening a FIFO without a reader."""
    return error.strerror == _NOT_REGULAR or error.errno == errno.ENXIO


def require_regular(descriptor: int, path: Path) -> int:
    """Return the descriptor of a regular file; close any other and raise OSError (EINVAL)."""
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    raise OSError(errno.EINVAL, _NOT_REGULAR, str(path))


def sha256_file(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def cache_directory() -> Path | None:
    """Return the directory of the cache; None if the user has no home directory.

    The directory is DPO_CACHE_DIR, else `dpo` in XDG_CACHE_HOME, else ~/.cache/dpo. It may be
    missing.
    """
    if own := os.environ.get("DPO_CACHE_DIR"):
        return Path(own).absolute()
    users = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if users.is_absolute():  # the XDG standard ignores relative paths
        return users / "dpo"
    try:
        return Path.home() / ".cache/dpo"
    except RuntimeError:
        return None


def cache_entries(directory: Path) -> list[Path]:
    """List the files and directories of a cache that dpo has written, also temporary ones.

    Their names start with a hash; other files are not ours and are left alone.
    """
    with contextlib.suppress(OSError):
        return sorted(p for p in directory.iterdir() if _CACHE_ENTRY.match(p.name))
    return []


def remove_path(path: Path) -> None:
    """Remove a file, a link or a directory tree.

    Raises:
        OSError: it cannot be removed.
    """
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def remove_unused(directory: Path) -> None:
    """Remove cache entries that were not used for a month, and files of killed writers."""
    for path in cache_entries(directory):
        with contextlib.suppress(OSError):  # another process may remove it at the same time
            if time.time() - path.stat().st_mtime > _UNUSED_SECONDS:
                remove_path(path)


def fsync_path(path: Path) -> None:
    """Flush a file, or the entries of a directory, to disk."""
    if IS_WINDOWS and path.is_dir():  # cannot be opened there
        return
    # Windows flushes only files that are open for writing.
    descriptor = os.open(path, os.O_RDWR if IS_WINDOWS else os.O_RDONLY)
    try:
        with naming(path):
            flush(descriptor)
    finally:
        os.close(descriptor)


def open_for_appending(path: Path) -> int:
    """Open a file for appending and return its descriptor; create the file if it is missing.

    Raises:
        OSError: with ELOOP if `path` is a symbolic link, which could lead to another user's file;
            with ENXIO or EINVAL if it is a FIFO or a device.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | NO_FOLLOW | NO_WAIT
    return require_regular(os.open(path, flags, 0o644), path)


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Write to a temporary file beside `path`, flush it, and rename it to `path`.

    If `write` fails, `path` stays as it was and the temporary file is removed.

    Args:
        path: file to create or replace.
        write: writes the content to the path that it is called with.

    Raises:
        OSError: it cannot be written, or `path` is special (EINVAL; see `is_special`).
    """
    if is_special(path):
        raise OSError(errno.EINVAL, _NOT_REGULAR, str(path))
    temporary = path.with_name(
        f".{path.name}.{uuid.uuid4().hex}.tmp"
    )  # `leftovers` parses this name
    try:
        with naming(path, instead_of=temporary):
            write(temporary)
            apply_umask(temporary)
            fsync_path(temporary)
            os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    # The rename is on disk only after the directory is flushed.
    fsync_path(path.parent)


def apply_umask(path: Path) -> None:
    """Set the permissions of a new file to those that the umask allows.

    The safetensors library writes files that only their owner can read, which a container, a web
    server or another user of the model cannot load.
    """
    with contextlib.suppress(OSError):  # some file systems have no permissions
        path.chmod(0o666 & ~_umask())


@functools.cache
def _umask() -> int:
    # The umask can be read only by setting it. Done once, because another thread that creates a
    # file at this moment would get the wrong permissions.
    current = os.umask(0o077)
    os.umask(current)
    return current


def swap(first: Path, second: Path) -> None:
    """Exchange the names of two files or directories of one file system atomically.

    On a file system without RENAME_EXCHANGE, `second` does not exist for a moment.
    """
    here, exchange = -100, 2  # AT_FDCWD and RENAME_EXCHANGE, from linux/fs.h
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    rename = getattr(libc, "renameat2", None)
    if rename and rename(here, os.fsencode(first), here, os.fsencode(second), exchange) == 0:
        return
    aside = first.with_name(f"{first.name}.{uuid.uuid4().hex}")
    os.rename(second, aside)
    os.rename(first, second)
    os.rename(aside, first)


def leftovers(directory: Path) -> Iterator[tuple[Path, str]]:
    """Yield temporary files of `write_atomically` in a directory, with their final names.

    A process may still be writing them.
    """
    for path in directory.glob(".*.tmp"):
        if match := _TEMPORARY.fullmatch(path.name):
            yield path, match[1]


def write_text_atomically(path: Path, text: str) -> None:
    """Write text in UTF-8 with `write_atomically`."""
    write_atomically(path, lambda temporary: write_text(temporary, text))


def write_text(path: Path, text: str) -> None:
    """Write text in UTF-8; an error names the file."""
    with naming(path):
        path.write_text(text, encoding="utf-8")


PAIR_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".ndjson")


def pair_files(path: Path) -> list[Path]:
    """Return the pair files of a path: the file itself, or the files of a folder, sorted by name.

    Raises:
        OSError: the folder cannot be read.
    """
    if not path.is_dir():
        return [path]
    return sorted(file for file in path.iterdir() if is_pair_file(file))


def is_pair_file(path: Path) -> bool:
    """Return True if the name is that of a pair file, compressed or not."""
    name = path.name.lower().removesuffix(".gz").removesuffix(".zst")
    return name.endswith(PAIR_SUFFIXES) and not name.startswith(".") and path.is_file()
