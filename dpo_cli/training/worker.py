"""The process that trains: `python -m dpo_cli.training.worker RUN [--change TEXT ...]`.

One of several that train together may be given `--join` instead, and learns the run from them.

It is started by the launcher (`dpo_cli.run.launch`), tells everything through the run's event
stream, and ends with an exit code of `dpo_cli.errors.ExitCode`.
"""

from __future__ import annotations

# Only what is light: signals must be heard, and the launcher's death noticed, before torch loads.
import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from dpo_cli.run.processes import die_with_parent


class Signals:
    """SIGINT and SIGTERM as requests to stop at the next step boundary."""

    def __init__(self) -> None:
        self.stop: str | None = None
        """Why the run is to stop: "interrupted" or "terminated"."""
        signal.signal(signal.SIGINT, self._hear)
        signal.signal(signal.SIGTERM, self._hear)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self.stop = "terminated" if number == signal.SIGTERM else "interrupted"


def main(arguments: Sequence[str] | None = None) -> int:
    """Train the run of the command line; the exit code says how it ended."""
    parser = argparse.ArgumentParser(prog="dpo_cli.training.worker", description=__doc__)
    run = parser.add_mutually_exclusive_group(required=True)
    run.add_argument("run", type=Path, nargs="?")
    run.add_argument("--join", action="store_true")
    parser.add_argument("--change", action="append", default=[])
    parser.add_argument("--exact", action="store_true")
    options = parser.parse_args(arguments)
    signals = Signals()

    from dpo_cli.training.session import train_run

    return train_run(options.run, signals, options.change, exact=options.exact)


if __name__ == "__main__":
    die_with_parent()
    sys.exit(main())
