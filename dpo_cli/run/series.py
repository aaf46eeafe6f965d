"""A curve of any length in bounded memory."""

from __future__ import annotations

import math
from dataclasses import dataclass

Point = tuple[float, float]

CAPACITY = 256
"""About as many points as a chart on a wide terminal has columns of dots."""


@dataclass
class _Stretch:
    """The values of neighbouring steps, as their sums."""

    count: int
    steps: float
    values: float

    def add(self, other: _Stretch) -> None:
        self.count += other.count
        self.steps += other.steps
        self.values += other.values


class Series:
    """Values by step, as means over equal stretches; stretches double whenever they get too many.

    So 100,000 steps cost what 200 cost, in memory and in drawing, and adding one is O(1).
    """

    def __init__(self) -> None:
        self._width = 1
        self._stretches: dict[int, _Stretch] = {}
        """By step // width, in ascending order, because steps ascend."""

    def add(self, step: int, value: float) -> None:
        """Append a value; what is not finite has no place in a chart and is left out."""
        if math.isfinite(value):
            self._add(step // self._width, _Stretch(1, step, value))
        if len(self._stretches) > CAPACITY:
            self._coarsen()

    def cut(self, step: int) -> None:
        """Forget what lies after `step`, to the accuracy of one stretch."""
        kept = {k: s for k, s in self._stretches.items() if k * self._width <= step}
        self._stretches = kept

    @property
    def points(self) -> list[Point]:
        """Mean step and mean value of each stretch."""
        return [(s.steps / s.count, s.values / s.count) for s in self._stretches.values()]

    @property
    def mean(self) -> float | None:
        """The mean of all values; None if there are none."""
        count = sum(s.count for s in self._stretches.values())
        return sum(s.values for s in self._stretches.values()) / count if count else None

    def _coarsen(self) -> None:
        stretches, self._stretches = self._stretches, {}
        self._width *= 2
        for key, stretch in stretches.items():
            self._add(key // 2, stretch)

    def _add(self, key: int, stretch: _Stretch) -> None:
        if key in self._stretches:
            self._stretches[key].add(stretch)
        else:
            self._stretches[key] = stretch
