"""A launcher in the background, as the terminal sees it that started it.

The process that trains must not depend on a terminal that may close, on a screen that may crash, or
on a user who wants the shell back. So it is split off (`launch.detach`), and what stays in front
passes on its signals, waits for it, and ends as it ended.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from dpo_cli.errors import DpoError, ExitCode
from dpo_cli.run import launch
from dpo_cli.run.locked_directory import LockedDirectory

_RELAYED = (signal.SIGINT, signal.SIGTERM)


class Supervisor:
    """The process in the background; `Launcher.run` is what it does."""

    def __init__(self, place: LockedDirectory, pid: int, outcome: int) -> None:
        self.pid = pid
        self.on_interrupt: Callable[[], None] = lambda: None
        """Called when a Ctrl-C was passed on."""
        self._place = place
        self._outcome = outcome
        self._status: int | None = None

    def has_ended(self) -> bool:
        """Whether it is over; the only thing that asks is the process that started it."""
        return self._wait(os.WNOHANG)

    def result(self) -> ExitCode:
        """Wait for the end, and return or raise what `Launcher.run` did over there."""
        self._wait(0)
        code = os.waitstatus_to_exitcode(self._status or 0)
        if text := os.pread(self._outcome, os.fstat(self._outcome).st_size, 0):
            raise DpoError.from_dict(json.loads(text))
        if code in (ExitCode.DONE, ExitCode.INTERRUPTED, ExitCode.TERMINATED):
            return ExitCode(code)
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
        raise DpoError(
            f"the launcher in the background {how}",
            self._place.resume_hint,
            [f"what it printed is in {self._place.launcher_log_path}"],
        )

    def relay(self, number: int, _frame: FrameType | None = None) -> None:
        """Pass a signal on."""
        if self._status is None:
            os.kill(self.pid, number)  # a child that was not waited for keeps its id
        if number == signal.SIGINT:
            self.on_interrupt()

    def _wait(self, options: int) -> bool:
        if self._status is None:
            pid, status = os.waitpid(self.pid, options)
            self._status = status if pid else None
        return self._status is not None


@contextmanager
def in_background(
    place: LockedDirectory, lock: int, train: Callable[[], ExitCode]
) -> Iterator[Supervisor]:
    """Split off a process that trains; while the block lasts, signals to this one go there.

    Like `os.fork`, but what is split off leaves here by SystemExit, or the DpoError of `train`.
    """
    outcome = os.memfd_create("outcome")  # shared, never full, and it needs no reader
    # No signal may hit the new process before it has a session of its own, or this one before it
    # can pass it on.
    signal.pthread_sigmask(signal.SIG_BLOCK, _RELAYED)
    pid = launch.detach(place, lock)
    if not pid:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _RELAYED)
        raise SystemExit(_telling(outcome, train))
    supervisor = Supervisor(place, pid, outcome)
    before = {number: signal.signal(number, supervisor.relay) for number in _RELAYED}
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _RELAYED)
    try:
        yield supervisor
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(outcome)


def _telling(outcome: int, train: Callable[[], ExitCode]) -> ExitCode:
    """Train, and leave a failure for the process in front."""
    try:
        return train()
    except DpoError as error:
        os.write(outcome, json.dumps(error.to_dict()).encode())
        raise
