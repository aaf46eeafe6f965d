"""Process that trains: `python -m dpo_cli.training.worker RUN [--change TEXT ...]`.

A rank on another machine gets `--join` instead of RUN, and receives the run from the main rank.
The launcher (`dpo_cli.run.launch`) starts the worker. The worker reports through the event stream
of the run, and exits with a code of `dpo_cli.errors.ExitCode`.
"""

from __future__ import annotations

# Light imports only: signals and the death of the launcher must be handled before torch is loaded,
# which takes seconds.
import argparse
import contextlib
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from dpo_cli.run.processes import Forked, die_with_parent, fork, redirect_streams


class Signals:
    """Turns SIGINT and SIGTERM into a request to stop at the next step boundary."""

    def __init__(self) -> None:
        self.stop: str | None = None
        """Reason to stop: "interrupted" or "terminated"; None so far."""
        signal.signal(signal.SIGINT, self._handle)
        signal.signal(signal.SIGTERM, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.stop = "terminated" if number == signal.SIGTERM else "interrupted"


def main(arguments: Sequence[str] | None = None) -> int:
    """Train the run on the command line, and return the exit code."""
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


def fork_worker(argv: Sequence[str], log: int, lock: int) -> Forked:
    """Start the worker of `launch.worker_argv` as a fork; see `processes.start_worker`.

    The fork shares the imports of torch and transformers, which are the first seconds of a worker,
    so a sweep imports them once. The parent must never compute with torch: a fork copies the locks
    of its thread pools, but not the threads. Like a process of its own, the fork has no input, the
    log as its output, and the lock as its only other open file.
    """
    import dpo_cli.training.session  # noqa: F401 - imported before the fork, for all workers

    def work() -> int:
        redirect_streams(log)
        for descriptor in map(int, os.listdir("/proc/self/fd")):
            if descriptor > 2 and descriptor != lock:
                with contextlib.suppress(OSError):  # the descriptor of the listing itself
                    os.close(descriptor)
        return main(argv[argv.index("-m") + 2 :])

    return fork(work)


if __name__ == "__main__":
    die_with_parent()
    sys.exit(main())
