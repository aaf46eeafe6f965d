"""Signals of the agent, relayed to its ranks."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Collection
from types import FrameType


class RankSignalRelay:
    """Relays SIGINT and SIGTERM to the ranks; without ranks they end this process.

    Torchrun would end the ranks itself. Here they save first and end by themselves. Without ranks
    there is nothing to save: they were not started yet, or another machine is awaited.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        """The last signal."""
        self._ranks: Collection[int] = ()
        self._starting = False
        self._install()

    def expect_ranks(self) -> None:
        """Keep signals from now on until `attach`: the ranks are being started.

        Dying in between would leave ranks that no process watches.
        """
        self._starting = True

    def attach(self, ranks: Collection[int]) -> None:
        """Relay to these process ids, beginning with a signal that came since `expect_ranks`."""
        self._install()  # torchrun has installed its own handlers while it started the ranks
        self._ranks, self._starting = ranks, False
        if self.received:
            self._send(self.received)

    def detach(self) -> None:
        """Stop relaying: all ranks have ended, and their process ids may be reused."""
        self._ranks = ()

    def die(self) -> None:
        """End this process by the signal that it received, so that the launcher sees the reason."""
        assert self.received is not None
        signal.signal(self.received, signal.SIG_DFL)
        os.kill(os.getpid(), self.received)

    def _install(self) -> None:
        signal.signal(signal.SIGINT, self._on_signal)
        signal.signal(signal.SIGTERM, self._on_signal)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        if self._ranks:
            self._send(number)
        elif not self._starting:
            self.die()

    def _send(self, number: int) -> None:
        for pid in self._ranks:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
