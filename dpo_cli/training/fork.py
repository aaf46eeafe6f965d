"""Workers that come without imports of their own: copies of a launcher that has made them.

A worker's first seconds go into importing torch and transformers. Who trains one run after another
imports them once, and never computes with them: a copy of a process that has computed would have
its locks, but not the threads that hold them.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence

from dpo_cli.run.processes import Forked, fork
from dpo_cli.training import session, worker

__all__ = ["fork_worker", "session"]  # the imports that are shared


def fork_worker(argv: Sequence[str], log: int, lock: int) -> Forked:
    """Start what `launch.worker_argv` says as a copy of this process; see `workers.start_worker`.

    It has what a process of its own would have: no input, the log as its output, and of all open
    files the lock alone.
    """

    def work() -> int:
        null = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((null, 0), (log, 1), (log, 2)):
            os.dup2(source, target)
        for descriptor in map(int, os.listdir("/proc/self/fd")):
            if descriptor > 2 and descriptor != lock:
                with contextlib.suppress(OSError):  # the listing's own
                    os.close(descriptor)
        return worker.main(argv[argv.index("-m") + 2 :])

    return fork(work)
