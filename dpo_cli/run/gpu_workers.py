"""Several launchers at once, one per GPU, for a sweep."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from dpo_cli.errors import ExitCode
from dpo_cli.run.gpus import count_gpus
from dpo_cli.run.processes import Forked, fork

_VISIBLE = "CUDA_VISIBLE_DEVICES"
_RELAYED = (signal.SIGINT, signal.SIGTERM)
_POLL_SECONDS = 0.2


def visible_gpus() -> list[str]:
    """Return the GPUs that this process may use, as `CUDA_VISIBLE_DEVICES` names them."""
    count = count_gpus()
    visible = os.environ.get(_VISIBLE)
    names = visible.split(",") if visible is not None else list(map(str, range(count)))
    return [name.strip() for name in names[:count]]


def on_gpus(
    gpus: Sequence[str], letters: str, work: Callable[[Iterator[str]], ExitCode]
) -> ExitCode:
    """Fork one process per GPU, and let them share out the runs of a sweep.

    Args:
        gpus: one for each process, which sees no other.
        letters: one per run; the next free process takes the next letter.
        work: trains the runs that it is given, until none is left or it is asked to stop.

    Returns:
        DONE, or the first other exit code of a process.
    """
    # A pipe as the queue: the kernel gives each byte to exactly one reader, and the readers see
    # its end when it is empty, since no process holds the writing end any more.
    reading, writing = os.pipe()
    os.write(writing, letters.encode())
    os.close(writing)

    def start(gpu: str) -> Forked:
        def work_on_gpu() -> int:
            os.environ[_VISIBLE] = gpu
            return work(iter(lambda: os.read(reading, 1).decode(), ""))

        return fork(work_on_gpu)

    told: list[int] = []
    # Handlers before processes. Blocking the signals would not do: in a process with threads, the
    # kernel gives a blocked signal to another thread, and Python then runs the handler of that
    # moment.
    before: dict[int, Any] = {
        number: signal.signal(number, lambda number, _: told.append(number)) for number in _RELAYED
    }
    before[signal.SIGHUP] = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        processes = [start(gpu) for gpu in gpus]
        os.close(reading)
        relayed = 0
        while None in [process.poll() for process in processes]:
            if any(process.returncode for process in processes) and not told:
                told.append(signal.SIGTERM)  # one process failed or was stopped: stop the others
            for number in told[relayed:]:
                relayed += 1
                for process in processes:
                    process.send_signal(number)
            time.sleep(_POLL_SECONDS)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    codes = [process.returncode or 0 for process in processes]
    # A negative code, of a process that a signal killed, counts as FAILED.
    return next((ExitCode(max(code, ExitCode.FAILED)) for code in codes if code), ExitCode.DONE)
