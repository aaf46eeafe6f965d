"""Curves of any length in bounded memory."""

from __future__ import annotations

import math
from dataclasses import dataclass

Point = tuple[float, float]

CAPACITY = 256
"""Maximum number of points, about the columns of dots of a chart on a wide terminal."""


@dataclass
class _Bin:
    """Sums over the values of neighboring steps."""

    count: int
    steps: float
    values: float

    def add(self, other: _Bin) -> None:
        self.count += other.count
        self.steps += other.steps
        self.values += other.values


class Series:
    """Values by step, averaged in bins of equal width.

    The width doubles when there are more than `CAPACITY` bins, so memory and drawing time do not
    grow with the number of steps, and adding a value is O(1).
    """

    def __init__(self) -> None:
        self._width = 1
        self._bins: dict[int, _Bin] = {}
        """Bins by step // width; ascending, because steps ascend."""

    def add(self, step: int, value: float) -> None:
        """Add a value; values that are not finite are left out, a chart cannot show them."""
        if math.isfinite(value):
            self._add(step // self._width, _Bin(1, step, value))
        if len(self._bins) > CAPACITY:
            self._coarsen()

    def cut(self, step: int) -> None:
        """Remove the values after `step`, to the accuracy of one bin."""
        kept = {k: s for k, s in self._bins.items() if k * self._width <= step}
        self._bins = kept

    @property
    def points(self) -> list[Point]:
        """Mean step and mean value of each bin."""
        return [(s.steps / s.count, s.values / s.count) for s in self._bins.values()]

    @property
    def mean(self) -> float | None:
        """Mean of all values; None if there are none."""
        count = sum(s.count for s in self._bins.values())
        return sum(s.values for s in self._bins.values()) / count if count else None

    def _coarsen(self) -> None:
        bins, self._bins = self._bins, {}
        self._width *= 2
        for key, each in bins.items():
            self._add(key // 2, each)

    def _add(self, key: int, addend: _Bin) -> None:
        if key in self._bins:
            self._bins[key].add(addend)
        else:
            self._bins[key] = addend
