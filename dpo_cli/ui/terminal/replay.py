"""Replay of a finished run's events at their original pace."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

from dpo_cli.run.events import Event, WorkerStarted


class Replay:
    """Iterator over events at their original pace; pauses between two starts are left out.

    Args:
        events: the events, in order.
        speed: seconds of the run per second of the replay.
        clock: a monotonic clock, in seconds.
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
        self._started_at = clock()
        self._yielded = 0

    def read_new(self) -> Iterator[Event]:
        """Yield the events that became due since the last call."""
        while not self.is_over() and self._due_seconds[self._yielded] <= self._passed_seconds:
            self._yielded += 1
            yield self._events[self._yielded - 1]

    def is_over(self) -> bool:
        """Return True if every event was yielded."""
        return self._yielded == len(self._events)

    def now(self) -> float:
        """Return the wall-clock time at this point of the run."""
        if not self._yielded:
            return 0.0
        last = self._yielded - 1
        return self._events[last].time + self._passed_seconds - self._due_seconds[last]

    @property
    def _passed_seconds(self) -> float:
        return (self._clock() - self._started_at) * self._speed


def _offsets(events: Sequence[Event]) -> list[float]:
    """Return the seconds from the first event to each event."""
    offsets, passed, previous = [], 0.0, 0.0
    for event in events:
        if isinstance(event, WorkerStarted):
            previous = event.elapsed_seconds
        # The launcher appends events after the worker's end with a clock that starts near zero:
        # max() keeps the sum from going backwards.
        passed += max(0.0, event.elapsed_seconds - previous)
        previous = event.elapsed_seconds
        offsets.append(passed)
    return offsets
