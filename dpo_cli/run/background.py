"""Launcher in a background process, as seen by the process in front of it.

Training must not depend on a terminal that may close, on a panel that may crash, or on a user who
wants the shell back. So the launcher is forked off (`launch.detach`). The process in front relays
its signals, waits for it and ends as it ended.
"""

from __future__ import annotations

import json
import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from dpo_cli.errors import DpoError, ExitCode
from dpo_cli.run import launch
from dpo_cli.run.exit_reason import signal_name
from dpo_cli.run.locked_directory import LockedDirectory
from dpo_cli.run.outcome import SAVED_CODES

_RELAYED = (signal.SIGINT, signal.SIGTERM)


class Supervisor:
    """Handle of the background process, which runs a `Launcher`.

    Args:
        directory: the run or sweep.
        pid: of the background process.
        outcome: descriptor of the memory file for its error.
    """

    def __init__(self, directory: LockedDirectory, pid: int, outcome: int) -> None:
        self.pid = pid
        self.on_interrupt: Callable[[], None] = lambda: None
        """Called after a Ctrl-C was relayed."""
        self._directory = directory
        self._outcome = outcome
        self._status: int | None = None

    def has_ended(self) -> bool:
        """Return True if the background process has ended."""
        return self._wait(os.WNOHANG)

    def result(self) -> ExitCode:
        """Wait for the end; return or raise what `Launcher.run` returned or raised."""
        self._wait(0)
        code = os.waitstatus_to_exitcode(self._status or 0)
        return read_outcome(self._outcome, code, self._directory)

    def relay(self, number: int, _frame: FrameType | None = None) -> None:
        """Send a signal to the background process; a signal handler."""
        if self._status is None:
            os.kill(self.pid, number)  # not reaped yet, so that its process id is still its own
        if number == signal.SIGINT:
            self.on_interrupt()

    def _wait(self, options: int) -> bool:
        if self._status is None:
            pid, status = os.waitpid(self.pid, options)
            self._status = status if pid else None
        return self._status is not None


@contextmanager
def in_background(
    directory: LockedDirectory, lock: int, train: Callable[[], ExitCode]
) -> Iterator[Supervisor]:
    """Fork a process that trains; while the block lasts, relay signals to it.

    The forked process does not run the block: it leaves by SystemExit, or by the DpoError of
    `train`.
    """
    outcome = outcome_file()
    early: list[int] = []
    # Kept until there is a process to relay them to. Blocking them is not enough: in a process with
    # threads, the kernel gives a blocked signal to another thread, and Python then runs the handler
    # of that moment.
    before = {
        number: signal.signal(number, lambda number, _: early.append(number)) for number in _RELAYED
    }

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    try:
        # Blocked until the new process has its own session and its handlers: a Ctrl-C in between
        # would reach both.
        signal.pthread_sigmask(signal.SIG_BLOCK, _RELAYED)
        pid = launch.detach(directory, lock)
        if not pid:
            restore()
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _RELAYED)
            raise SystemExit(_train_and_report(outcome, train))
        supervisor = Supervisor(directory, pid, outcome)
        for number in _RELAYED:
            signal.signal(number, supervisor.relay)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _RELAYED)
        for each in early:
            supervisor.relay(each)
        yield supervisor
    finally:
        restore()
        os.close(outcome)


def outcome_file() -> int:
    """Create a file without a name for the error of a child, and return its descriptor.

    Unlike a pipe it is never full and needs no reader, and it can be read after the child's end. On
    Linux it is in memory, so that a full disk does not hide the error.
    """
    if hasattr(os, "memfd_create"):
        return os.memfd_create("outcome")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def write_outcome(outcome: int, error: DpoError) -> None:
    """Write the error of this process for its parent."""
    os.write(outcome, json.dumps(error.to_dict()).encode())


def read_outcome(outcome: int, returncode: int, directory: LockedDirectory) -> ExitCode:
    """Return the exit code of a launcher that has ended.

    Args:
        outcome: descriptor of the memory file.
        returncode: of the launcher, negative for a signal.
        directory: the run or sweep.

    Raises:
        DpoError: the error that the launcher wrote, or that it was killed.
    """
    if text := os.pread(outcome, os.fstat(outcome).st_size, 0):
        raise DpoError.from_dict(json.loads(text))
    if returncode in SAVED_CODES:
        return SAVED_CODES[returncode]
    killed = f"was killed by {signal_name(-returncode)}" if returncode < 0 else ""
    raise DpoError(
        f"the launcher in the background {killed or f'ended with {returncode}'}",
        directory.resume_hint,
        [f"its output is in {directory.launcher_log_path}"],
    )


def _train_and_report(outcome: int, train: Callable[[], ExitCode]) -> ExitCode:
    try:
        return train()
    except DpoError as error:
        write_outcome(outcome, error)
        raise
