"""Several ranks without torchrun: forked processes that share a store of the test.

The ranks of torchrun share the store of its agent instead.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import partial

from torch.distributed import TCPStore

from dpo_cli.run.directory import RunDirectory
from tests.support import workers
from tests.support.cli import HANG_SECONDS

Arm = Callable[[int], object]
"""Arms a fault in the process of a rank; gets the number of the rank."""


class Group:
    """Processes with the ranks 0, 1, ... of a group.

    Args:
        size: number of processes.
        body: function that each process runs, given its rank.
    """

    def __init__(self, size: int, body: Callable[[int], object]) -> None:
        self._store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        self.processes = [
            workers.forked(_enter, rank, size, self._store.port, body) for rank in range(size)
        ]
        for process in self.processes:
            process.start()

    def wait(self, seconds: float = HANG_SECONDS) -> list[int]:
        """Wait for the processes; return exit codes by rank, negative for signals."""
        return [workers.wait(process, seconds) for process in self.processes]

    def kill(self) -> None:
        """Send SIGKILL to all processes."""
        for process in self.processes:
            process.kill()
        self.wait()


def start(run: RunDirectory, size: int, arm: Arm | None = None) -> Group:
    """Start `size` ranks on a run; rank 0 has the lock."""
    return Group(size, partial(_work, run, arm))


def work(
    run: RunDirectory, size: int, arm: Arm | None = None, seconds: float = HANG_SECONDS
) -> list[int]:
    """Start ranks and wait for them; return exit codes by rank."""
    return start(run, size, arm).wait(seconds)


def _enter(rank: int, size: int, port: int, body: Callable[[int], object]) -> None:
    import torch

    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }
    torch.set_num_threads(1)
    body(rank)


def _work(run: RunDirectory, arm: Arm | None, rank: int) -> None:
    from dpo_cli.training import worker

    if rank == 0:
        run.lock()
    log = os.open(run.worker_log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    if arm is not None:
        arm(rank)
    sys.exit(worker.main(["--join"] if rank else [str(run.path)]))
