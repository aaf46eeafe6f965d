"""A directory that one process works in at a time: its lock, and who holds it."""

from __future__ import annotations

import fcntl
import os
import socket
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dpo_cli.errors import DpoError
from dpo_cli.run.disk import explain_disk_errors

_LOCK_TRIES, _LOCK_RETRY_SECONDS = 4, 0.02


@dataclass(frozen=True)
class LockedDirectory(ABC):
    """A run, or a sweep of several, as those see it who want to work there."""

    path: Path

    @property
    @abstractmethod
    def designation(self) -> str:
        """What the user calls it."""

    @property
    @abstractmethod
    def resume_hint(self) -> str:
        """The remedy after an end without saving."""

    @property
    @abstractmethod
    def written_paths(self) -> Sequence[Path]:
        """The directories that must be writable."""

    @abstractmethod
    def taken(self, holder: str) -> DpoError:
        """What to tell who comes second."""

    @property
    def launcher_log_path(self) -> Path:
        """What a launcher printed that had no terminal, or lost it."""
        return self.path / "launcher.log"

    def lock(self) -> int:
        """Take it for this process and all that inherit the descriptor which is returned.

        The kernel frees it when the last of them has closed it or died, so it is never stale.

        Raises:
            DpoError: somebody holds it (who is named), or the directory cannot be written.
        """
        with explain_disk_errors(self.path):
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
            descriptor = os.open(self._lock_path, flags, 0o644)
            try:
                if not _try_lock(descriptor):
                    raise self.taken(_holder(descriptor))
                sign_lock(descriptor)
                self._try_writing()
            except BaseException:
                os.close(descriptor)
                raise
        os.set_inheritable(descriptor, True)
        return descriptor

    @contextmanager
    def locked(self) -> Iterator[int]:
        """`lock` for a block; processes that inherited the descriptor may hold it on."""
        descriptor = self.lock()
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def holder(self) -> str | None:
        """Who works there, in words; None if nobody does."""
        try:
            descriptor = os.open(self._lock_path, os.O_RDONLY)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return _holder(descriptor)
        finally:
            os.close(descriptor)
        return None

    def _try_writing(self) -> None:
        """Refuse at once what would end at the first save: a lock file takes a lock anywhere."""
        for directory in filter(Path.is_dir, self.written_paths):
            with explain_disk_errors(directory), tempfile.TemporaryFile(dir=directory):
                pass

    @property
    def _lock_path(self) -> Path:
        return self.path / "lock"


def sign_lock(descriptor: int) -> None:
    """Write who holds the lock into its file: this process. Only the holder may call it."""
    text = f"process {os.getpid()} on {socket.gethostname()}"
    os.pwrite(descriptor, text.encode(), 0)
    os.ftruncate(descriptor, len(text.encode()))


def _try_lock(descriptor: int) -> bool:
    """Whether the lock was free; `LockedDirectory.holder` may hold it an instant while it looks."""
    for attempt in range(_LOCK_TRIES):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if attempt + 1 < _LOCK_TRIES:
                time.sleep(_LOCK_RETRY_SECONDS)
        else:
            return True
    return False


def _holder(descriptor: int) -> str:
    return os.pread(descriptor, 1024, 0).decode(errors="replace") or "another process"
