"""Trial of untrusted input in a forked child with limits on time and memory."""

from __future__ import annotations

import os
import signal
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

from dpo_cli.errors import DpoError
from dpo_cli.parent_death import die_with

HAS_MEMORY_LIMIT = sys.platform == "linux"
"""macOS accepts a limit on the address space and does not enforce it."""
TRIAL_BYTES = 1 << 30
"""Memory that a trial may take beyond that of this process."""
OUT_OF_MEMORY = 3
_WALL_SECONDS = 120.0
_POLL_SECONDS = 0.002


def in_child(work: Callable[[], int], subject: str, seconds: int = 10) -> int:
    """Call `work` in a fork with limits; return its result, or minus the signal that ended it.

    Windows has no fork: there nothing is tried, and the result is 0.

    Args:
        work: returns its exit code.
        subject: name of the input, for the error.
        seconds: limit of processor time.

    Raises:
        DpoError: the child did not get this time within `_WALL_SECONDS`.
    """
    if not hasattr(os, "fork"):
        return 0
    parent = os.getpid()
    with warnings.catch_warnings():  # the child touches no lock of another thread
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if not pid:
        code = 1
        try:
            die_with(parent)
            null = os.open(os.devnull, os.O_RDWR)
            for descriptor in range(3):
                os.dup2(null, descriptor)
            _limit(seconds)
            code = work()
        except MemoryError:
            code = OUT_OF_MEMORY
        finally:
            os._exit(code)
    return _wait(pid, subject)


def ran_too_long(status: int) -> bool:
    """Return True if the kernel ended the child of `in_child` at its limit of processor time."""
    return status < 0 and status in (-signal.SIGXCPU, -signal.SIGKILL)


def _limit(seconds: int) -> None:
    """Limit processor time and memory of this process."""
    import resource  # not available on Windows

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    if HAS_MEMORY_LIMIT:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        limit = pages * os.sysconf("SC_PAGE_SIZE") + TRIAL_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _wait(pid: int, subject: str) -> int:
    deadline = time.monotonic() + _WALL_SECONDS
    most_bytes = None if HAS_MEMORY_LIMIT else _resident_bytes(os.getpid()) + TRIAL_BYTES
    try:
        while True:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status)
            if most_bytes is not None and _resident_bytes(pid) > most_bytes:
                _kill(pid)
                return OUT_OF_MEMORY
            if time.monotonic() > deadline:
                _kill(pid)
                raise DpoError(
                    f"{subject} could not be tried within {_WALL_SECONDS:g} seconds",
                    "Try again when the machine and the disk are less busy.",
                )
            time.sleep(_POLL_SECONDS)
    except KeyboardInterrupt:
        os.kill(pid, signal.SIGKILL)
        raise


def _resident_bytes(pid: int) -> int:
    """Return the resident bytes of a process; 0 if it has just ended."""
    import psutil

    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return 0


def _kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
