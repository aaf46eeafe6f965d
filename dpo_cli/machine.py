"""Functions of the operating system that not every platform has, each with its substitute.

Linux has all of them. macOS has no `prctl`, no /proc and no CPU affinity; Windows has no `flock`
either, and directories cannot be opened there.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from dpo_cli.errors import UsageError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

IS_WINDOWS = sys.platform == "win32"

NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)
"""Flag of `os.open`: refuse a symbolic link. Windows has none, and few links."""
NO_WAIT = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
"""Flags of `os.open`: do not wait for the writer of a FIFO; on Windows, keep newlines as they are.
"""


def available_memory(proc: Path = Path("/proc")) -> int:
    """Return the bytes of main memory that programs can still take.

    Args:
        proc: directory of Linux's files about memory; psutil asks other systems.
    """
    try:
        lines = (proc / "meminfo").read_text(encoding="ascii").splitlines()
    except FileNotFoundError:
        import psutil

        return int(psutil.virtual_memory().available)
    facts = dict(line.split(":", 1) for line in lines)
    return int(facts["MemAvailable"].split()[0]) * 1024


def require_processes() -> None:
    """Refuse to train or to change runs on Windows, which has neither their locks nor `fork`.

    Raises:
        UsageError: this is Windows.
    """
    if IS_WINDOWS:
        raise UsageError(
            "dpo does not train or clean runs on Windows itself",
            "Run it in WSL, Microsoft's Linux on Windows: wsl --install",
        )


def lock_file(descriptor: int, *, shared: bool = False, wait: bool = False) -> None:
    """Lock an open file for this process and all that inherit the descriptor.

    The kernel releases the lock when the last of them has closed the descriptor or has died.

    Args:
        descriptor: of a file, or of a directory.
        shared: let others hold a shared lock, too.
        wait: wait for a process that holds the lock.

    Raises:
        BlockingIOError: another process holds the lock.
        OSError: the file system or the operating system has no such locks.
    """
    if fcntl is None:
        raise OSError("Windows has no flock")
    operation = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    fcntl.flock(descriptor, operation if wait else operation | fcntl.LOCK_NB)


def flush(descriptor: int) -> None:
    """Flush an open file to the disk, so that a power failure cannot undo what was written.

    On macOS `fsync` leaves the data in the cache of the drive; F_FULLFSYNC empties it.
    """
    everything = getattr(fcntl, "F_FULLFSYNC", None)
    if everything is not None:
        try:
            fcntl.fcntl(descriptor, everything)
        except OSError:  # a file system without it, for example of a network
            pass
        else:
            return
    os.fsync(descriptor)


def usable_cpus() -> frozenset[int]:
    """Return the CPUs that this process may use; all of them on a system without affinity."""
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))
