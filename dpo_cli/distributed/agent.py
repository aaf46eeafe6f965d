"""Process between launcher and ranks: `python -m dpo_cli.distributed.agent --run RUN -- TORCHRUN`.

It is torchrun with three differences: it dies with the launcher, it passes SIGINT and SIGTERM on
and lets the ranks end by themselves, and it tells the run's event stream of each rank that failed.
What stands behind the -- is a command line of torchrun.
"""

from __future__ import annotations

# Only what is light: signals must be heard, and the launcher's death noticed, before torch loads.
import argparse
import contextlib
import os
import signal
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from types import FrameType

from dpo_cli.run.processes import die_with_parent


class Relay:
    """SIGINT and SIGTERM: passed on to the ranks, or where there are none the end of this process.

    Without ranks nothing is lost: none was started yet, or it is waited for another machine.
    """

    def __init__(self) -> None:
        self.heard: signal.Signals | None = None
        """The last one."""
        self._ranks: Collection[int] = ()
        self._are_starting = False
        self._listen()

    def expect_ranks(self) -> None:
        """Keep what comes now for the ranks that are being started."""
        self._are_starting = True

    def attach(self, ranks: Collection[int]) -> None:
        """Pass on to these processes from now on, beginning with what came meanwhile."""
        self._listen()  # whoever started them may have put handlers of its own
        self._ranks, self._are_starting = ranks, False
        if self.heard:
            self._send(self.heard)

    def detach(self) -> None:
        """There are no ranks any more."""
        self._ranks = ()

    def die(self) -> None:
        """End this process by the signal it heard."""
        assert self.heard is not None
        signal.signal(self.heard, signal.SIG_DFL)
        os.kill(os.getpid(), self.heard)

    def _listen(self) -> None:
        signal.signal(signal.SIGINT, self._hear)
        signal.signal(signal.SIGTERM, self._hear)

    def _hear(self, number: int, _frame: FrameType | None) -> None:
        self.heard = signal.Signals(number)
        if self._ranks:
            self._send(number)
        elif not self._are_starting:
            self.die()

    def _send(self, number: int) -> None:
        for pid in self._ranks:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)


def main(arguments: Sequence[str] | None = None) -> int:
    """Start the ranks and watch over them; 0 if all of them ended so."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    split = words.index("--")
    parser = argparse.ArgumentParser(prog="dpo_cli.distributed.agent", description=__doc__)
    parser.add_argument("--run", type=Path, required=True)
    options = parser.parse_args(words[:split])
    relay = Relay()

    from dpo_cli.distributed.elastic import run_ranks

    return run_ranks(options.run, words[split + 1 :], relay)


if __name__ == "__main__":
    die_with_parent()
    sys.exit(main())
