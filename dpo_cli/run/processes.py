"""The processes that train, as their launcher knows them, and how they are started."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Protocol

_PR_SET_PDEATHSIG = 1
_HEARD = (signal.SIGINT, signal.SIGTERM)


class Worker(Protocol):
    """A child of this process, in a session of its own; as `subprocess.Popen` has it."""

    @property
    def pid(self) -> int:
        """Its process's id, and that of its session."""
        ...

    @property
    def returncode(self) -> int | None:
        """How it ended, negative for a signal; None until `poll` has seen it end."""
        ...

    def poll(self) -> int | None:
        """Its `returncode`, now."""
        ...

    def send_signal(self, sig: int) -> None:
        """Send a signal, unless it has ended."""
        ...


Starter = Callable[[Sequence[str], int, int], Worker]
"""Starts what a command line says, with descriptors of its log and of its run's lock."""


def start_worker(argv: Sequence[str], log: int, lock: int) -> Worker:
    """Start a command line in a session of its own, printing into `log`, with `lock` inherited."""
    return subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        pass_fds=(lock,),
    )


def die_with_parent(parent: int | None = None) -> None:
    """Be killed when the launcher dies: nobody would watch over the run any more.

    Args:
        parent: the launcher's process id, where that is known; it may be dead already.
    """
    parent = parent or os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


class Forked:
    """A copy of this process, as a `Worker`."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """See `Worker`."""
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def send_signal(self, sig: int) -> None:
        """See `Worker`. Called by signal handlers, too, in the middle of a `poll`."""
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, sig)


def fork(work: Callable[[], int]) -> Forked:
    """Start a copy of this process, which dies with it and ends with the code that `work` returns.

    Like a process that was started anew it has a session of its own, and dies of signals until it
    says otherwise.
    """
    parent = os.getpid()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # a closed pipe does not concern it
            stream.flush()
    # No handler of this process may ever run in the new one.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _HEARD)
    pid = os.fork()
    if pid:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return Forked(pid)
    code = 1
    try:
        os.setsid()
        for number in _HEARD:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _HEARD)
        die_with_parent(parent)
        code = work()
        sys.stdout.flush()
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError):
            sys.stderr.flush()
        os._exit(code)
