"""A launcher's signals, passed on to the worker that it watches."""

from __future__ import annotations

import contextlib
import os
import signal
from types import FrameType
from typing import Any

from dpo_cli.run.outcome import SentSignals
from dpo_cli.run.processes import Worker


class SignalRelay:
    """Passes the launcher's signals on to the worker while it lives.

    SIGINT: once, the worker finishes its window and saves; twice, it is killed. SIGTERM: it saves.
    SIGHUP is ignored, so that a closing terminal ends nothing. All is done inside the handlers: an
    observer that blocks in a write must not keep a Ctrl-C from the worker.
    """

    def __init__(self) -> None:
        # Two plain attributes, not one `SentSignals`: a signal may arrive inside the other signal's
        # handler, and replacing a common object there would lose one of the two.
        self._interrupts = 0
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
    def sent(self) -> SentSignals:
        """Signals that were relayed so far."""
        return SentSignals(self._interrupts, self._terminated)

    def attach(self, worker: Worker) -> None:
        """Start passing on, beginning with the signals that came while the worker was started."""
        self._worker = worker
        for number in self._waiting:
            self._send(number)

    def _on_interrupt(self, _number: int, _frame: FrameType | None) -> None:
        self._interrupts += 1
        self._send(signal.SIGINT if self._interrupts == 1 else signal.SIGKILL)

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
