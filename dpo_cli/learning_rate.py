"""Learning-rate schedules of both MiniMind versions, over the micro-batches of a run; no torch."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

ScheduleName = Literal["minimind2", "minimind3"]


@dataclass(frozen=True)
class LearningRate:
    """Learning rate at each of T micro-batches.

    minimind2: lr * (0.1 + 0.5 * (1 + cos(pi t / T))), t from 0: starts at 1.1 lr.
    minimind3: lr * (0.1 + 0.45 * (1 + cos(pi t / T))), t from 1: ends exactly at 0.1 lr.

    For the first `warmup_iters` micro-batches it is multiplied by (1, 2, ...) / warmup_iters.
    """

    schedule: ScheduleName
    peak: float
    micro_batches: int
    warmup_iters: int

    def at(self, step: int) -> float:
        """Return the rate of micro-batch `step`, counted from 0."""
        if self.schedule == "minimind2":
            cosine = 0.5 * (1 + math.cos(math.pi * step / self.micro_batches))
        else:
            cosine = 0.45 * (1 + math.cos(math.pi * (step + 1) / self.micro_batches))
        warmup = min(1.0, (step + 1) / self.warmup_iters) if self.warmup_iters else 1.0
        return self.peak * (0.1 + cosine) * warmup

    def lr_sum(self, micro_batches: Iterable[int]) -> float:
        """Return the sum of the rates of all optimizer steps.

        Args:
            micro_batches: those whose rates the steps use; see `last_steps`.
        """
        return sum(map(self.at, micro_batches))


def last_steps(micro_batches_per_epoch: int, accumulation_steps: int, epochs: int) -> list[int]:
    """Return the numbers of the last micro-batch of each optimizer step, counted from 0.

    An optimizer step uses the rate of its last micro-batch. A step never spans two epochs, so the
    last one of an epoch may have fewer micro-batches.
    """
    ends = range(accumulation_steps, micro_batches_per_epoch, accumulation_steps)
    in_epoch = [*(end - 1 for end in ends), micro_batches_per_epoch - 1]
    return [epoch * micro_batches_per_epoch + step for epoch in range(epochs) for step in in_epoch]
