"""Learning-rate schedules over the micro-batches and optimizer steps of a run; no torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

ScheduleName = Literal["minimind2", "minimind3", "linear", "cosine", "constant", "wsd"]
BY_MICRO_BATCH = ("minimind2", "minimind3")
"""Schedules of MiniMind's scripts, which count micro-batches; the others count optimizer steps."""
DECAY_RATIO = 0.1
"""Default share of the optimizer steps in which wsd decays."""


@dataclass(frozen=True)
class LearningRate:
    """Learning rate at each of T micro-batches, or S optimizer steps.

    minimind2: lr * (0.1 + 0.5 * (1 + cos(pi t / T))), t from 0: starts at 1.1 lr.
    minimind3: lr * (0.1 + 0.45 * (1 + cos(pi t / T))), t from 1: ends exactly at 0.1 lr.

    In the first W micro-batches these two are multiplied by (1, 2, ...) / W.

    linear, cosine, constant and wsd (warm up, stay, decay) are the schedules of transformers of the
    same names, over s = 0, 1, ... S - 1: a warm-up of W steps by s / W, so that the first step has
    a rate of 0, then the decay towards `min_lr_ratio` * lr, which step S would have.

    Attributes:
        schedule: name of the schedule.
        peak: train.learning_rate.
        micro_batches: T.
        warmup_iters, warmup_ratio: micro-batches, or share of the run, of the warm-up; at most one
            is above 0.
        min_lr_ratio: see above.
        decay_iters, decay_ratio: micro-batches, or share of the steps, of the decay of wsd.
        accumulation_steps: micro-batches of an optimizer step; the last one of an epoch may have
            fewer.
        epochs: number of epochs, of equally many micro-batches.
    """

    schedule: ScheduleName
    peak: float
    micro_batches: int
    warmup_iters: int = 0
    warmup_ratio: float = 0.0
    min_lr_ratio: float = 0.0
    decay_iters: int | None = None
    decay_ratio: float | None = None
    accumulation_steps: int = 1
    epochs: int = 1

    @classmethod
    def of(
        cls, train: Mapping[str, Any], micro_batches: int, accumulation_steps: int, epochs: int
    ) -> LearningRate:
        """Return the schedule of a run.

        Args:
            train: values of the table [train]; absent ones have their default.
            micro_batches, accumulation_steps, epochs: see the attributes.
        """
        names = ("warmup_iters", "warmup_ratio", "min_lr_ratio", "decay_iters", "decay_ratio")
        given = {name: train[name] for name in names if train.get(name) is not None}
        return cls(
            train["schedule"],
            train["learning_rate"],
            micro_batches,
            accumulation_steps=accumulation_steps,
            epochs=epochs,
            **given,
        )

    def at(self, micro_batch: int) -> float:
        """Return the rate of a micro-batch, counted from 0; see `last_steps`."""
        if self.schedule not in BY_MICRO_BATCH:
            return self.peak * self._share(self._step(micro_batch))
        if self.schedule == "minimind2":
            cosine = 0.5 * (1 + math.cos(math.pi * micro_batch / self.micro_batches))
        else:
            cosine = 0.45 * (1 + math.cos(math.pi * (micro_batch + 1) / self.micro_batches))
        iters = self.warmup_iters or math.ceil(self.warmup_ratio * self.micro_batches)
        warmup = min(1.0, (micro_batch + 1) / iters) if iters else 1.0
        return self.peak * (0.1 + cosine) * warmup

    def lr_sum(self, micro_batches: Iterable[int]) -> float:
        """Return the sum of the rates of all optimizer steps.

        Args:
            micro_batches: those whose rates the steps use; see `last_steps`.
        """
        return sum(map(self.at, micro_batches))

    @property
    def _steps_per_epoch(self) -> int:
        return math.ceil(self.micro_batches / self.epochs / self.accumulation_steps)

    def _step(self, micro_batch: int) -> int:
        """Return the optimizer step of a micro-batch, both counted from 0."""
        epoch, in_epoch = divmod(micro_batch, self.micro_batches // self.epochs)
        return epoch * self._steps_per_epoch + in_epoch // self.accumulation_steps

    def _share(self, step: int) -> float:
        """Return the factor of the peak at an optimizer step, as transformers computes it."""
        steps, least = self._steps_per_epoch * self.epochs, self.min_lr_ratio
        warmup = self._steps_of(self.warmup_iters, self.warmup_ratio, steps)
        if step < warmup:
            # wsd rises from the lowest rate, the others from 0.
            start = least if self.schedule == "wsd" else 0.0
            return step / warmup * (1 - start) + start
        if self.schedule == "constant":
            return 1.0
        begin, length = warmup, steps - warmup
        if self.schedule == "wsd":
            ratio = DECAY_RATIO if self.decay_ratio is None else self.decay_ratio
            length = self._steps_of(self.decay_iters or 0, ratio, steps)
            begin = steps - length
            if step < begin:
                return 1.0
        progress = (step - begin) / max(1, length)
        decayed = 1 - progress
        if self.schedule != "linear":
            decayed = 0.5 * (1 + math.cos(math.pi * progress))
        return max(0.0, decayed * (1 - least) + least)

    def _steps_of(self, micro_batches: int, ratio: float, steps: int) -> int:
        """Return a part of the run in optimizer steps, begun ones included."""
        return math.ceil(micro_batches / self.accumulation_steps) or math.ceil(ratio * steps)


def last_steps(micro_batches_per_epoch: int, accumulation_steps: int, epochs: int) -> list[int]:
    """Return the numbers of the last micro-batch of each optimizer step, counted from 0.

    An optimizer step uses the rate of its last micro-batch. A step never spans two epochs, so the
    last one of an epoch may have fewer micro-batches.
    """
    ends = range(accumulation_steps, micro_batches_per_epoch, accumulation_steps)
    in_epoch = [*(end - 1 for end in ends), micro_batches_per_epoch - 1]
    return [epoch * micro_batches_per_epoch + step for epoch in range(epochs) for step in in_epoch]
