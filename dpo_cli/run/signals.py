"""Signals of a launcher, relayed to its worker."""

from __future__ import annotations

import contextlib
import os
import signal
from types import FrameType
from typing import Any

from dpo_cli.run.outcome import SentSignals
from dpo_cli.run.processes import Worker


class SignalRelay:
    """Context manager that relays the launcher's signals to the worker.

    After the first SIGINT, or a SIGTERM, the worker finishes its step and saves. The second SIGINT
    kills it. SIGHUP is ignored, so that a closing terminal does not end training. The handlers do
    all the work themselves: an observer that blocks in a write must not delay a Ctrl-C.
    """

    def __init__(self) -> None:
        # Two plain attributes, not one `SentSignals`: a signal may arrive inside the other signal's
        # handler, and replacing a common object there would lose one of the two.
        self._interrupts = 0
        self._terminated = False
        self._worker: Worker | None = None
        self._pending: list[signal.Signals] = []
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
        """Signals that were relayed so far, or will be when a worker is attached."""
        return SentSignals(self._interrupts, self._terminated)

    def attach(self, worker: Worker) -> None:
        """Relay to this worker, beginning with signals that came while there was none."""
        # In this order: a signal between the two lines is sent by its handler, not lost.
        self._worker = worker
        pending, self._pending = self._pending, []
        for number in pending:
            self._send(number)

    def detach(self) -> None:
        """Keep signals from now on for the next worker.

        The ended worker's process id may be reused, and a sweep starts another worker.
        """
        self._worker = None

    def _on_interrupt(self, _number: int, _frame: FrameType | None) -> None:
        self._interrupts += 1
        self._send(signal.SIGINT if self._interrupts == 1 else signal.SIGKILL)

    def _on_terminate(self, _number: int, _frame: FrameType | None) -> None:
        self._terminated = True
        self._send(signal.SIGTERM)

    def _send(self, number: signal.Signals) -> None:
        if self._worker is None:
            self._pending.append(number)
        elif number == signal.SIGKILL:
            # The whole process group, so that no child of the worker holds the run's lock.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._worker.pid, number)
        else:
            self._worker.send_signal(number)
