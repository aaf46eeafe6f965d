"""Files in the cache directory, which can all be computed again."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from dpo_cli.errors import DpoError
from dpo_cli.files import cache_directory, cache_entries, remove_path

KINDS = {
    "tokens": "encoded rows",
    "reference": "log-probs of references",
}
"""Kinds of cached files, with a description for users."""
_WRITING_SECONDS = 3600
"""Temporary files younger than this may still be written."""


@dataclass(frozen=True)
class Cached:
    """One cached file; `kind` is a key of `KINDS`, `used` is in seconds since the epoch."""

    kind: str
    path: Path
    size_bytes: int
    used: float


def require_cache_directory() -> Path:
    """Return the cache directory, which need not exist.

    Raises:
        DpoError: the user has no home directory and DPO_CACHE_DIR is not set.
    """
    directory = cache_directory()
    if directory is None:
        raise DpoError("there is no cache directory: this user has no home", "Set DPO_CACHE_DIR.")
    return directory


def entries(directory: Path) -> list[Cached]:
    """List the files that dpo has put into the cache directory; other files are ignored."""
    files = []
    for kind, path in _files(directory):
        with suppress(OSError):  # another process removes unused files
            state = path.lstat()
            size_bytes = sum(p.lstat().st_size for p in path.iterdir()) if path.is_dir() else 0
            is_temporary = path.name.endswith(".tmp")
            if not is_temporary or time.time() - state.st_mtime > _WRITING_SECONDS:
                files.append(Cached(kind, path, size_bytes or state.st_size, state.st_mtime))
    return files


def remove(cached: Sequence[Cached]) -> list[Cached]:
    """Remove files and empty folders; return the files that were removed.

    Runs in progress are not affected: they keep in memory what they read from a cache.
    """
    gone = []
    for entry in cached:
        with suppress(OSError):
            remove_path(entry.path)
            gone.append(entry)
    for folder in {entry.path.parent for entry in cached}:
        with suppress(OSError):  # not empty
            os.rmdir(folder)
    return gone


def _files(directory: Path) -> Iterator[tuple[str, Path]]:
    for kind in KINDS:
        for path in cache_entries(directory / kind):
            yield kind, path
