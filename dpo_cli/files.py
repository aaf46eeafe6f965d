"""Writing and hashing files so that a crash at any moment leaves the old file or the new one."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

_CHUNK_BYTES = 1 << 20
_UNUSED_SECONDS = 30 * 24 * 3600
_CACHE_ENTRY = re.compile(r"\.?[0-9a-f]{64}")
_TEMPORARY = re.compile(r"\.(.+)\.[0-9a-f]{32}\.tmp")


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of the bytes of `path`."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def cache_directory() -> Path | None:
    """Where what can be made again is kept between runs; None where nobody has a home.

    `DPO_CACHE_DIR`, else `dpo` in `XDG_CACHE_HOME`, else `~/.cache/dpo`. It need not exist.
    """
    if own := os.environ.get("DPO_CACHE_DIR"):
        return Path(own).absolute()
    users = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if users.is_absolute():  # the standard has relative ones ignored
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
    """Flush a file, or the entries of a directory, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def open_for_appending(path: Path) -> int:
    """A descriptor that appends to `path`, which is made if it is missing.

    Raises:
        OSError: ELOOP, among others: a link could lead to anybody's file.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
    return os.open(path, flags, 0o644)


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file beside `path`, flush it, and rename it over `path`.

    The directory is flushed after the rename, so that a power loss keeps either file whole. A
    failing `write` leaves `path` as it was and no temporary file behind.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")  # as `leftovers` knows it
    try:
        write(temporary)
        fsync_path(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_path(path.parent)


def swap(first: Path, second: Path) -> None:
    """Let two files or directories of one file system have each other's name, in one moment.

    Where the file system cannot do that, `second` has none for an instant.
    """
    here, exchange = -100, 2  # AT_FDCWD and RENAME_EXCHANGE, from linux/fs.h
    rename = getattr(ctypes.CDLL(None), "renameat2", None)  # Linux alone has it
    if rename and rename(here, os.fsencode(first), here, os.fsencode(second), exchange) == 0:
        return
    aside = first.with_name(f"{first.name}.{uuid.uuid4().hex}")
    os.rename(second, aside)
    os.rename(first, second)
    os.rename(aside, first)


def leftovers(directory: Path) -> Iterator[tuple[Path, str]]:
    """Temporary files of `write_atomically` in a directory, and the names they were to get.

    Whoever wrote them may be dead, or writing.
    """
    for path in directory.glob(".*.tmp"):
        if match := _TEMPORARY.fullmatch(path.name):
            yield path, match[1]


def write_text_atomically(path: Path, text: str) -> None:
    """`write_atomically` for a text in UTF-8."""
    write_atomically(path, lambda temporary: _write_text(temporary, text))


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


PAIR_SUFFIXES = (".jsonl", ".json", ".csv", ".parquet", ".ndjson")


def pair_files(path: Path) -> list[Path]:
    """The files of pairs that a path stands for: itself, or those right in a folder, by name.

    Raises:
        OSError: a folder that cannot be looked into.
    """
    if not path.is_dir():
        return [path]
    return sorted(file for file in path.iterdir() if is_pair_file(file))


def is_pair_file(path: Path) -> bool:
    """Whether a file of pairs has such a name."""
    name = path.name.lower().removesuffix(".gz").removesuffix(".zst")
    return name.endswith(PAIR_SUFFIXES) and not name.startswith(".") and path.is_file()
