"""Directory in which one process works at a time, and its lock."""

from __future__ import annotations

import os
import socket
import stat
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dpo_cli.errors import DpoError
from dpo_cli.files import open_regular
from dpo_cli.machine import NO_FOLLOW, lock_file, require_processes
from dpo_cli.run.disk import explain_disk_errors
from dpo_cli.streams import open_standard_streams

_LOCK_TRIES, _LOCK_RETRY_SECONDS = 4, 0.02


@dataclass(frozen=True)
class LockedDirectory(ABC):
    """Directory of a run, or of a sweep of several runs."""

    path: Path

    @property
    @abstractmethod
    def designation(self) -> str:
        """Name of the run or sweep, for messages and command lines."""

    @property
    @abstractmethod
    def resume_hint(self) -> str:
        """Remedy after an end without saving."""

    @property
    @abstractmethod
    def written_paths(self) -> Sequence[Path]:
        """Directories that must be writable."""

    @abstractmethod
    def lock_error(self, holder: str) -> DpoError:
        """Return the error for a second process that wants the lock."""

    @property
    def launcher_log_path(self) -> Path:
        """Output of a launcher without a terminal."""
        return self.path / "launcher.log"

    def lock(self) -> int:
        """Lock the directory for this process and all that inherit the returned descriptor.

        The kernel releases a flock when the last process that holds the descriptor has closed it or
        died, so that a lock never outlives its processes.

        Raises:
            DpoError: another process holds the lock, the file system has no locks, or the directory
                cannot be written.
            UsageError: this is Windows.
        """
        require_processes()
        open_standard_streams()  # so that the lock does not get a descriptor that a child redirects
        with explain_disk_errors(self.path):
            # A link must not make this write to a file outside the directory.
            flags = os.O_RDWR | os.O_CREAT | NO_FOLLOW
            descriptor = os.open(self.lock_path, flags, 0o644)
            try:
                if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                    raise DpoError(f"{self.lock_path} is no regular file", "Remove it.")
                if not self._try_lock(descriptor):
                    raise self.lock_error(_holder(descriptor))
                sign_lock(descriptor)
                self._try_writing()
            except BaseException:
                os.close(descriptor)
                raise
        os.set_inheritable(descriptor, True)
        return descriptor

    @contextmanager
    def locked(self) -> Iterator[int]:
        """Lock the directory for a block.

        Processes that inherited the descriptor may hold the lock longer.
        """
        descriptor = self.lock()
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def holder(self) -> str | None:
        """Return a description of the process that holds the lock.

        None if no process does, or if that cannot be determined; see `look_at_lock`. A caller that
        changes the directory must take the lock.
        """
        try:
            return self.look_at_lock()
        except OSError:
            return None

    def look_at_lock(self) -> str | None:
        """Return a description of the process that holds the lock, or None.

        Raises:
            OSError: the lock cannot be read, or the file system has no locks.
        """
        try:
            file = open_regular(self.lock_path)
        except FileNotFoundError:
            return None
        with file:
            try:
                # A shared lock, so that several observers do not see each other as holders.
                lock_file(file.fileno(), shared=True)
            except BlockingIOError:
                return _holder(file.fileno())
        return None

    def _try_lock(self, descriptor: int) -> bool:
        # Retried, because `look_at_lock` of another process holds the lock for an instant.
        for attempt in range(_LOCK_TRIES):
            try:
                lock_file(descriptor)
            except BlockingIOError:
                if attempt + 1 < _LOCK_TRIES:
                    time.sleep(_LOCK_RETRY_SECONDS)
            except OSError as error:
                # Without a lock two processes could train the same run and mix their checkpoints.
                raise DpoError(
                    f"cannot lock {self.path}: {error.strerror}, as on NFS that is mounted without"
                    " locks",
                    "Choose a directory on another disk with --runs-dir or DPO_RUNS_DIR, or mount"
                    " the file system with locks.",
                ) from error
            else:
                return True
        return False

    def _try_writing(self) -> None:
        """Fail now if the first save would fail: locks work on full and read-only mounts, too."""
        for directory in filter(Path.is_dir, self.written_paths):
            if directory != self.path and directory.is_symlink():
                raise DpoError(
                    f"{directory} is a link, and dpo does not write through links",
                    "Replace the link by the directory.",
                )
            with explain_disk_errors(directory), tempfile.TemporaryFile(dir=directory):
                pass

    @property
    def lock_path(self) -> Path:
        """File that is locked; its text names the process that holds the lock."""
        return self.path / "lock"


def sign_lock(descriptor: int) -> None:
    """Write into the lock file that this process holds the lock; only the holder may call it."""
    text = f"process {os.getpid()} on {socket.gethostname()}"
    # Write before truncating: a reader in between sees this holder and old rest, not an empty file.
    os.pwrite(descriptor, text.encode(), 0)
    os.ftruncate(descriptor, len(text.encode()))


def _holder(descriptor: int) -> str:
    return os.pread(descriptor, 1024, 0).decode(errors="replace") or "another process"
