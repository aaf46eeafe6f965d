"""Several launchers at once, one for each card: how a sweep uses all of them."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from types import FrameType

from dpo_cli.errors import ExitCode
from dpo_cli.run.gpus import count_gpus
from dpo_cli.run.processes import Forked, fork

_VISIBLE = "CUDA_VISIBLE_DEVICES"
_RELAYED = (signal.SIGINT, signal.SIGTERM)
_POLL_SECONDS = 0.2


def visible_gpus() -> list[str]:
    """The cards that CUDA would let this process use, each as `CUDA_VISIBLE_DEVICES` names it."""
    count = count_gpus()
    stated = os.environ.get(_VISIBLE)
    names = stated.split(",") if stated is not None else list(map(str, range(count)))
    return [name.strip() for name in names[:count]]


def on_gpus(
    cards: Sequence[str], letters: str, work: Callable[[Iterator[str]], ExitCode]
) -> ExitCode:
    """Let as many processes as there are cards share out what is to be done.

    Args:
        cards: one for each process, which sees no other.
        letters: of what is to be done; each is given to whoever is free first.
        work: does what it is given, until nothing is left or it was asked to stop.

    Returns:
        DONE, or the first other code that one of the processes ended with.
    """
    reading, writing = os.pipe()
    os.write(writing, letters.encode())
    os.close(writing)

    def start(card: str) -> Forked:
        def share() -> int:
            os.environ[_VISIBLE] = card
            return work(iter(lambda: os.read(reading, 1).decode(), ""))

        return fork(share)

    asked: list[int] = []

    def pass_on(number: int, _frame: FrameType | None = None) -> None:
        asked.append(number)
        for lane in lanes:
            lane.send_signal(number)

    signal.pthread_sigmask(signal.SIG_BLOCK, _RELAYED)
    lanes = [start(card) for card in cards]
    os.close(reading)
    before = {number: signal.signal(number, pass_on) for number in _RELAYED}
    before[signal.SIGHUP] = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _RELAYED)
    try:
        while None in [lane.poll() for lane in lanes]:
            if any(lane.returncode for lane in lanes) and not asked:
                pass_on(signal.SIGTERM)  # one was stopped, or cannot go on: all are
            time.sleep(_POLL_SECONDS)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    codes = [lane.returncode or 0 for lane in lanes]
    return next((ExitCode(max(code, ExitCode.FAILED)) for code in codes if code), ExitCode.DONE)
