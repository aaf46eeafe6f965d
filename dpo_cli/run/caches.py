"""What lies in the cache directory: all of it can be made again, and costs time then."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from dpo_cli.errors import DpoError
from dpo_cli.files import cache_directory

KINDS = {
    "tokens": "encoded rows",
    "reference": "log-probs of references",
}
"""What is kept, in words."""
_WRITING_SECONDS = 3600
"""A temporary file that is younger may be being written."""


@dataclass(frozen=True)
class Cached:
    """One file of the cache; `kind` is one of `KINDS`, `used` seconds since the epoch."""

    kind: str
    path: Path
    size_bytes: int
    used: float


def the_cache() -> Path:
    """The cache directory; it need not exist.

    Raises:
        DpoError: there is no place for one.
    """
    directory = cache_directory()
    if directory is None:
        raise DpoError("there is no cache: this user has no home", "set DPO_CACHE_DIR")
    return directory


def entries(directory: Path) -> list[Cached]:
    """What `dpo` has put into the cache directory, and nothing that others may keep there."""
    found = []
    for kind, path in _files(directory):
        with suppress(OSError):  # another process removes what is unused
            state = path.lstat()
            is_temporary = path.name.endswith(".tmp")
            if not is_temporary or time.time() - state.st_mtime > _WRITING_SECONDS:
                found.append(Cached(kind, path, state.st_size, state.st_mtime))
    return found


def remove(cached: Sequence[Cached]) -> list[Cached]:
    """Remove entries, and their folders once empty; those that are gone. Runs that have mapped
    one keep it until they end.
    """
    gone = []
    for entry in cached:
        with suppress(OSError):
            entry.path.unlink(missing_ok=True)
            gone.append(entry)
    for folder in {entry.path.parent for entry in cached}:
        with suppress(OSError):  # not empty
            os.rmdir(folder)
    return gone


def _files(directory: Path) -> Iterator[tuple[str, Path]]:
    for kind in ("tokens", "reference"):
        folder = directory / kind
        for pattern in ("*.safetensors", ".*.safetensors.*.tmp"):
            for path in sorted(folder.glob(pattern)):
                if path.name.startswith(".") == pattern.startswith("."):
                    yield kind, path
