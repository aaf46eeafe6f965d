"""The events of a run that is over, as if they came now."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

from dpo_cli.run.events import Event, WorkerStarted


class Replay:
    """Hands out events at the pace they came, times `speed`; the time between two starts is cut.

    Args:
        events: in order.
        speed: how many seconds of the run pass in one.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        events: Sequence[Event],
        speed: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._events = events
        self._due_seconds = _offsets(events)
        self._speed = speed
        self._clock = clock
        self._began = clock()
        self._handed_out = 0

    def read_new(self) -> Iterator[Event]:
        """The events that are due and were not handed out yet."""
        while not self.is_over() and self._due_seconds[self._handed_out] <= self._passed_seconds:
            self._handed_out += 1
            yield self._events[self._handed_out - 1]

    def is_over(self) -> bool:
        """Whether every event was handed out."""
        return self._handed_out == len(self._events)

    def now(self) -> float:
        """What the wall clock showed at this point of the run."""
        if not self._handed_out:
            return 0.0
        last = self._handed_out - 1
        return self._events[last].time + self._passed_seconds - self._due_seconds[last]

    @property
    def _passed_seconds(self) -> float:
        return (self._clock() - self._began) * self._speed


def _offsets(events: Sequence[Event]) -> list[float]:
    """When each event is due, in seconds since the first."""
    offsets, passed, before = [], 0.0, 0.0
    for event in events:
        if isinstance(event, WorkerStarted):
            before = event.elapsed_seconds
        # Nothing passes before what the launcher appends, on a clock of its own, near zero.
        passed += max(0.0, event.elapsed_seconds - before)
        before = event.elapsed_seconds
        offsets.append(passed)
    return offsets
