"""Workers forked from a process that has imported torch and transformers already.

Importing them takes the first seconds of a worker, so a sweep imports them once. The parent must
never compute with torch: a fork copies the locks of its thread pools, but not the threads.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence

from dpo_cli.run.processes import Forked, fork
from dpo_cli.training import session, worker

__all__ = ["fork_worker", "session"]  # `session` is imported for the workers


def fork_worker(argv: Sequence[str], log: int, lock: int) -> Forked:
    """Start the worker of `launch.worker_argv` as a fork; see `processes.start_worker`.

    Like a process of its own it has no input, the log as its output, and the lock as its only other
    open file.
    """

    def work() -> int:
        null = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((null, 0), (log, 1), (log, 2)):
            os.dup2(source, target)
        for descriptor in map(int, os.listdir("/proc/self/fd")):
            if descriptor > 2 and descriptor != lock:
                with contextlib.suppress(OSError):  # the descriptor of the listing itself
                    os.close(descriptor)
        return worker.main(argv[argv.index("-m") + 2 :])

    return fork(work)
