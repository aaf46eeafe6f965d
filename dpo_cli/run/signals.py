"""A launcher's signals, passed on to the worker that it watches."""

from __future__ import annotations

import contextlib
import os
import signal
from types import FrameType
from typing import Any

from dpo_cli.errors import ExitCode
from dpo_cli.run.processes import Worker


class SignalRelay:
    """Passes the launcher's signals on to the worker while it lives.

    SIGINT: once, the worker finishes its window and saves; twice, it is killed. SIGTERM: it saves.
    SIGHUP is ignored, so that a closing terminal ends nothing. All is done inside the handlers: an
    observer that blocks in a write must not keep a Ctrl-C from the worker.
    """

    def __init__(self) -> None:
        self.interrupts = 0
        self._terminated = False
        self._worker: Worker | None = None
        self._waiting: list[signal.Signals] = []
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> SignalRelay:
        self._previous = {
            signal.SIGINT: signal.signal(signal.SIGINT, self._on_interrupt),
            signal.SIGTERM: signal.signal(signal.SIGTERM, self._on_terminate),
            signal.SIGHUP: signal.signal(signal.SIGHUP, signal.SIG_IGN),
        }
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    @property
    def asked(self) -> ExitCode | None:
        """The exit code of who was asked to stop; None if nobody asked."""
        if self._terminated:
            return ExitCode.TERMINATED
        return ExitCode.INTERRUPTED if self.interrupts else None

    def attach(self, worker: Worker) -> None:
        """Start passing on, beginning with the signals that came while the worker was started."""
        self._worker = worker
        for number in self._waiting:
            self._send(number)

    def killed(self, returncode: int) -> ExitCode | None:
        """The exit code if the worker died of a signal that was passed on, without saving."""
        if self.interrupts > 1 and returncode == -signal.SIGKILL:
            return ExitCode.INTERRUPTED
        if self.interrupts and returncode == -signal.SIGINT:
            return ExitCode.INTERRUPTED
        if self._terminated and returncode == -signal.SIGTERM:
            return ExitCode.TERMINATED
        return None

    def _on_interrupt(self, _number: int, _frame: FrameType | None) -> None:
        self.interrupts += 1
        self._send(signal.SIGINT if self.interrupts == 1 else signal.SIGKILL)

    def _on_terminate(self, _number: int, _frame: FrameType | None) -> None:
        self._terminated = True
        self._send(signal.SIGTERM)

    def _send(self, number: signal.Signals) -> None:
        if self._worker is None:
            self._waiting.append(number)
        elif number == signal.SIGKILL:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._worker.pid, number)  # the processes it started, too
        else:
            self._worker.send_signal(number)
