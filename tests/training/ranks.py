"""Several ranks without torchrun: forked workers that meet at a store of the test's own."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

from dpo_cli.run.store import RunDirectory
from tests.faults import workers

Arm = Callable[[int], object]
"""Puts a fault into the process of a rank."""


def start(run: RunDirectory, size: int, arm: Arm | None = None) -> list[BaseProcess]:
    """Start `size` ranks on a run, the first of which holds it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [
        workers.forked(_work, run.path if rank == 0 else None, rank, size, port, arm, run)
        for rank in range(size)
    ]
    for process in processes:
        process.start()
    return processes


def work(run: RunDirectory, size: int, arm: Arm | None = None, seconds: float = 60.0) -> list[int]:
    """Start ranks and wait for their ends: exit codes, by rank."""
    return [workers.wait(process, seconds) for process in start(run, size, arm)]


def _work(
    path: Path | None, rank: int, size: int, port: int, arm: Arm | None, run: RunDirectory
) -> None:
    import torch

    from dpo_cli.training import worker

    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    torch.set_num_threads(1)
    if path is not None:
        run.lock()
    log = os.open(run.worker_log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    if arm is not None:
        arm(rank)
    sys.exit(worker.main([str(path) if path is not None else "--join"]))
