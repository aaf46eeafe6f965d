"""Alert rules about the machine: speed and free disk space."""

from __future__ import annotations

from statistics import median

from dpo_cli.alerts.history import WINDOW
from dpo_cli.run.events import Alert, StepDone

SLOW_SHARE = 0.5
"""Of the usual tokens a second. Batches of long pairs come to less, but not for long."""
SLOW_SECONDS = 60.0
"""That it must last: another job's start is no reason to wake anyone."""
USUAL_BLOCKS = 3
"""Windows of steps that must have gone by for there to be a usual speed."""
_KEPT_BLOCKS = 500

STATES_AHEAD = 3
"""Room to be kept: for the first saves two states stay and a third is written, and a disk that
others fill is seen two saves before it is full."""


class Speed:
    """Compares this start's tokens a second with what they usually were; saves and evaluations are
    no part of a step's time.
    """

    def __init__(self) -> None:
        self._block: list[StepDone] = []
        self._usual: list[float] = []
        self._slow_seconds = 0.0

    def take(self, event: StepDone) -> Alert | None:
        """Hear of a step."""
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
            message=f"step {event.step}: {speed:,.0f} tokens/s for {self._slow_seconds:.0f} s,"
            f" where this run usually does {usual:,.0f}",
            remedy="see who else computes here (top, nvidia-smi), and whether the machine is hot or"
            " short of memory; the result stays the same",
        )


def disk(free_bytes: int, state_bytes: int) -> Alert | None:
    """Whether the next saves will find room."""
    if free_bytes >= STATES_AHEAD * state_bytes:
        return None
    return Alert(
        code="disk-filling",
        message=f"{free_bytes / 1e9:.2f} GB are free where the run lies, and each save writes"
        f" {state_bytes / 1e9:.2f} GB",
        remedy="free some space now; should a save fail, the state before it stays, and dpo resume"
        " goes on from it",
    )
