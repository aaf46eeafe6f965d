"""Child processes: how they are started, watched, and ended with their parent."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from dpo_cli.run.child_environment import PARENT_PID, child_environment
from dpo_cli.streams import open_standard_streams

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Worker(Protocol):
    """A child process in its own session; `subprocess.Popen` is one."""

    @property
    def pid(self) -> int:
        """Process id, which is also that of its session."""
        ...

    @property
    def returncode(self) -> int | None:
        """Exit code, negative for a signal; None until `poll` has seen the end."""
        ...

    def poll(self) -> int | None:
        """Return `returncode`, after a check whether the process has ended."""
        ...

    def send_signal(self, sig: int) -> None:
        """Send a signal, unless the process has ended."""
        ...


Starter = Callable[[Sequence[str], int, int], Worker]
"""Starts a command line, with the descriptors of the log and of the run's lock."""


def module_argv(module: str, *arguments: str) -> list[str]:
    """Return the command line that runs a module of this package in a new Python process.

    `python -m` puts the working directory first in `sys.path`, where a file that happens to be
    called `torch.py` would be imported. `-P` prevents that.
    """
    return [sys.executable, "-P", "-m", module, *arguments]


def start_child(
    argv: Sequence[str],
    *,
    stdin: int = subprocess.DEVNULL,
    output: int | None = None,
    errors: int | None = None,
    pass_fds: Sequence[int] = (),
    changes: Mapping[str, str] | None = None,
    own_session: bool = True,
) -> subprocess.Popen[bytes]:
    """Start a command line; the package starts all its child programs with this function.

    Args:
        argv: the command line.
        stdin: as for `subprocess.Popen`.
        output: descriptor for standard output; None for that of this process.
        errors: descriptor for standard error; None for `output`.
        pass_fds: further descriptors that the child inherits.
        changes: environment variables to set or replace for the child.
        own_session: give the child its own session, so that a Ctrl-C does not reach it directly.
    """
    open_standard_streams()
    return subprocess.Popen(
        argv,
        stdin=stdin,
        stdout=output,
        stderr=output if errors is None else errors,
        start_new_session=own_session,
        pass_fds=pass_fds,
        env={**child_environment(), **(changes or {})},
    )


def start_worker(argv: Sequence[str], log: int, lock: int) -> Worker:
    """Start a command line that prints into `log` and inherits the descriptor `lock`."""
    return start_child(argv, output=log, pass_fds=(lock,))


def run_child(argv: Sequence[str], timeout_seconds: float) -> tuple[int, str]:
    """Run a command line until it exits; return its exit code, and its output and errors as text.

    Raises:
        subprocess.TimeoutExpired: the process ran too long and was killed.
    """
    with start_child(argv, output=subprocess.PIPE, errors=subprocess.STDOUT) as process:
        try:
            output, _ = process.communicate(timeout=timeout_seconds)
        except BaseException:  # also Ctrl-C, which does not reach the child
            process.kill()
            raise
    return process.returncode, output.decode(errors="replace")


def die_with_parent(parent: int | None = None) -> None:
    """Let the kernel kill this process when its parent dies, or at once if it is dead already.

    Without its launcher a worker would train on with no process to watch it, relay signals to it
    or report its end.

    Args:
        parent: process id of the parent; by default the one that `start_child` handed down.
    """
    handed_down = os.environ.pop(PARENT_PID, None)
    if parent is None:
        parent = int(handed_down) if handed_down else os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # The kernel sends nothing for a parent that died before the call above. Another process has
    # then adopted this one. Without a handed-down id that shows only if it happened just now.
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def hand_down_pid() -> None:
    """Make the children of this process die with it, if another library starts them."""
    os.environ.update(child_environment())


class Forked:
    """A forked copy of this process, as a `Worker`."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Return `returncode`, after a check whether the process has ended."""
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def send_signal(self, sig: int) -> None:
        """Send a signal, unless the process has ended.

        A signal handler may call this between `waitpid` and the assignment in `poll`: the process
        id is then free already, hence the suppressed error.
        """
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, sig)


def fork(work: Callable[[], int]) -> Forked:
    """Fork a copy of this process that calls `work`, exits with its result, and dies with this one.

    Like a newly started process, the copy has its own session, and signals end it until it installs
    handlers.
    """
    parent = os.getpid()
    _prepare_fork()
    # Blocked until the copy has default handlers: a handler of this process must never run there,
    # since it would relay the signal to this process's own workers.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
    pid = os.fork()
    if pid:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return Forked(pid)
    code = 1
    try:
        os.setsid()
        for number in _STOP_SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOP_SIGNALS)
        die_with_parent(parent)
        code = work()
        sys.stdout.flush()
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError):
            sys.stderr.flush()
        # Not sys.exit: it would run this process's `finally` blocks and atexit handlers again.
        os._exit(code)


def fork_detached(output: int) -> int:
    """Fork a copy of this process that outlives it and the terminal.

    Args:
        output: descriptor for standard output and error of the copy, which has no input. Closed in
            both processes.

    Returns:
        As `os.fork`: in this process the process id of the copy; in the copy 0.
    """
    _prepare_fork()
    pid = os.fork()
    if not pid:
        os.setsid()
        redirect_streams(output)
    os.close(output)
    return pid


def redirect_streams(output: int) -> None:
    """Give this process no input, and `output` as its standard output and error."""
    null = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((null, 0), (output, 1), (output, 2)):
        os.dup2(source, target)
    os.close(null)


def _prepare_fork() -> None:
    open_standard_streams()
    # Otherwise both processes would write the text that is still buffered.
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # a closed pipe, a full disk
            stream.flush()
