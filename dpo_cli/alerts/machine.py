"""Alert rules about the machine: speed and free disk space.

Unlike the other alerts, these are not reproducible.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

from dpo_cli.alerts.history import WINDOW
from dpo_cli.run.cpu_time import contention, contention_message, contention_remedy
from dpo_cli.run.events import Alert, StepDone

SLOW_SHARE = 0.5
"""Share of the usual tokens per second. Batches of long pairs can be as slow, but not for long."""
SLOW_SECONDS = 60.0
"""Seconds that a low speed must last; the start of another job is no reason for an alert."""
USUAL_BLOCKS = 3
"""Number of windows of steps to measure before their median counts as the usual speed."""
_KEPT_BLOCKS = 500

CONTENDED_SECONDS = 20.0
"""Seconds of steps over which CPU time and duration are compared."""

STATES_AHEAD = 3
"""Number of saves that must fit on the disk. The first saves keep two checkpoints while a third is
written; beyond that, a disk that other programs fill is reported two saves before it is full."""


class Speed:
    """Compares the tokens per second with their usual value since this start.

    The time of a step does not include saves and evaluations.
    """

    def __init__(self) -> None:
        self._block: list[StepDone] = []
        self._usual: list[float] = []
        self._slow_seconds = 0.0

    def take(self, event: StepDone) -> Alert | None:
        """Return an alert if the speed has been low for `SLOW_SECONDS`."""
        self._block.append(event)
        if len(self._block) < WINDOW:
            return None
        speed = median(step.tokens / step.seconds for step in self._block)
        seconds = sum(step.seconds for step in self._block)
        self._block.clear()
        usual = median(self._usual) if len(self._usual) >= USUAL_BLOCKS else 0.0
        if speed >= SLOW_SHARE * usual:
            self._usual = [*self._usual[1 - _KEPT_BLOCKS :], speed]
            self._slow_seconds = 0.0
            return None
        self._slow_seconds += seconds
        if self._slow_seconds < SLOW_SECONDS:
            return None
        return Alert(
            code="slow",
            message=f"step {event.optimizer_step}: {speed:,.0f} tokens/s for"
            f" {self._slow_seconds:.0f} s; the usual speed of this run is {usual:,.0f}",
            remedy="Check for other programs (top, nvidia-smi), heat and low memory. The result"
            " does not change.",
        )


class Contention:
    """Compares the duration of steps with their CPU time since this start.

    The first step of a start is left out: it also loads code.

    Args:
        threads: number of CPU threads.
    """

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._is_first = True
        self._seconds = self._cpu_seconds = 0.0

    def take(self, event: StepDone, stolen: Callable[[], float]) -> Alert | None:
        """Return an alert if the CPU was contended over `CONTENDED_SECONDS` of steps.

        Args:
            event: the next step.
            stolen: returns the share of the CPU time that the host of a virtual machine has taken
                since the last call (steal time).
        """
        if self._is_first:
            self._is_first = False
            stolen()
            return None
        self._seconds += event.seconds
        self._cpu_seconds += event.cpu_seconds
        if self._seconds < CONTENDED_SECONDS:
            return None
        times = contention(self._seconds, self._cpu_seconds)
        self._seconds = self._cpu_seconds = 0.0
        share = stolen()
        if times is None:
            return None
        return Alert(
            code="cpu-contention",
            message=f"step {event.optimizer_step}: {contention_message(times, share)}",
            remedy=contention_remedy(self._threads),
        )


def disk(free_bytes: int, state_bytes: int) -> Alert | None:
    """Return an alert if the disk is too full for the next saves."""
    if free_bytes >= STATES_AHEAD * state_bytes:
        return None
    return Alert(
        code="disk-filling",
        message=f"{free_bytes / 1e9:.2f} GB are free on the disk of the run, and each save writes"
        f" {state_bytes / 1e9:.2f} GB",
        remedy="Free some space now. If a save fails, the previous checkpoint stays and dpo resume"
        " continues from it.",
    )
