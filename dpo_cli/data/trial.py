"""Trial of untrusted input in a forked child with limits on time and memory."""

from __future__ import annotations

import os
import resource
import signal
import time
import warnings
from collections.abc import Callable
from pathlib import Path

from dpo_cli.errors import DpoError
from dpo_cli.parent_death import die_with

TRIAL_BYTES = 1 << 30
"""Memory that a trial may take beyond that of this process."""
OUT_OF_MEMORY = 3
_WALL_SECONDS = 120.0
_POLL_SECONDS = 0.002


def in_child(work: Callable[[], int], subject: str, seconds: int = 10) -> int:
    """Call `work` in a fork with limits; return its result, or minus the signal that ended it.

    Args:
        work: returns its exit code.
        subject: name of the input, for the error.
        seconds: limit of processor time.

    Raises:
        DpoError: the child did not get this time within `_WALL_SECONDS`.
    """
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
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
            used_bytes = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf(
                "SC_PAGE_SIZE"
            )
            limit = used_bytes + TRIAL_BYTES
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
            code = work()
        except MemoryError:
            code = OUT_OF_MEMORY
        finally:
            os._exit(code)
    return _wait(pid, subject)


def _wait(pid: int, subject: str) -> int:
    deadline = time.monotonic() + _WALL_SECONDS
    try:
        while True:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status)
            if time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                raise DpoError(
                    f"{subject} could not be tried within {_WALL_SECONDS:g} seconds",
                    "Try again when the machine and the disk are less busy.",
                )
            time.sleep(_POLL_SECONDS)
    except KeyboardInterrupt:
        os.kill(pid, signal.SIGKILL)
        raise
