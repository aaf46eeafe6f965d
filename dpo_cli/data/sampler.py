"""Which pairs each optimizer step sees: pure functions of the plan, so that a resume needs only
the number of optimizer steps done.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class GlobalBatch:
    """The micro-batches of one optimizer step, for all ranks together.

    `first_step` is the number (from 0, over the whole run) of its first micro-batch.
    """

    epoch: int
    first_step: int
    micro_batches: tuple[tuple[int, ...], ...]

    @property
    def last_step(self) -> int:
        """Number (from 0) of its last micro-batch, whose learning rate the optimizer uses."""
        return self.first_step + len(self.micro_batches) - 1


@dataclass(frozen=True)
class BatchSampler:
    """How `pairs` are dealt out over epochs, windows and micro-batches.

    `accumulation_steps` are the micro-batches of a window on all ranks together: who computes which
    is no matter of order. An epoch's last micro-batch may be
    smaller, its last window shorter: it is closed there and never leaks into the next epoch.
    """

    pairs: int
    batch_size: int
    accumulation_steps: int
    epochs: int
    shuffle: bool
    seed: int

    @property
    def micro_batches_per_epoch(self) -> int:
        """Micro-batches in an epoch; the last may be a short one."""
        return math.ceil(self.pairs / self.batch_size)

    @property
    def optimizer_steps_per_epoch(self) -> int:
        """Optimizer steps in an epoch."""
        return math.ceil(self.micro_batches_per_epoch / self.accumulation_steps)

    @property
    def micro_batches(self) -> int:
        """Micro-batches in the run: T of the learning-rate schedule."""
        return self.epochs * self.micro_batches_per_epoch

    @property
    def optimizer_steps(self) -> int:
        """Optimizer steps in the run."""
        return self.epochs * self.optimizer_steps_per_epoch

    @property
    def last_steps(self) -> list[int]:
        """Of each window the number of its last micro-batch, whose learning rate it uses."""
        return [self.steps_done(step) - 1 for step in range(1, self.optimizer_steps + 1)]

    def epoch_order(self, epoch: int) -> list[int]:
        """The pairs in the order in which `epoch` (from 0) visits them.

        Shuffled, it is `torch.randperm` seeded with seed + epoch, as MiniMind version 3 draws it.
        """
        if not self.shuffle:
            return list(range(self.pairs))
        generator = torch.Generator().manual_seed(self.seed + epoch)
        return torch.randperm(self.pairs, generator=generator).tolist()

    def micro_batches_of(self, epoch: int) -> list[tuple[int, ...]]:
        """The pair indices of each micro-batch of an epoch."""
        order = self.epoch_order(epoch)
        return [
            tuple(order[start : start + self.batch_size])
            for start in range(0, self.pairs, self.batch_size)
        ]

    def global_batches(self, start: int = 0) -> Iterator[GlobalBatch]:
        """The windows of optimizer steps `start`, `start + 1`, ... to the end of the run."""
        first_epoch, skip = divmod(start, self.optimizer_steps_per_epoch)
        for epoch in range(first_epoch, self.epochs):
            micro_batches = self.micro_batches_of(epoch)
            for number in range(skip, self.optimizer_steps_per_epoch):
                first = number * self.accumulation_steps
                yield GlobalBatch(
                    epoch,
                    epoch * self.micro_batches_per_epoch + first,
                    tuple(micro_batches[first : first + self.accumulation_steps]),
                )
            skip = 0

    def steps_done(self, optimizer_steps: int) -> int:
        """Micro-batches behind a run that has done so many optimizer steps."""
        epochs, global_batches = divmod(optimizer_steps, self.optimizer_steps_per_epoch)
        in_epoch = min(global_batches * self.accumulation_steps, self.micro_batches_per_epoch)
        return epochs * self.micro_batches_per_epoch + in_epoch


def hold_out(pairs: int, fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """Split pair indices into (training, held out), both in the order of the file.

    At least one pair is held out for any fraction above 0, and at least one is left to train on.
    """
    if not fraction:
        return list(range(pairs)), []
    count = min(max(1, round(fraction * pairs)), pairs - 1)
    generator = torch.Generator().manual_seed(seed)
    chosen = set(torch.randperm(pairs, generator=generator)[:count].tolist())
    return [i for i in range(pairs) if i not in chosen], sorted(chosen)


def repeat(groups: Sequence[Sequence[int]], weights: Sequence[float], seed: int) -> list[int]:
    """The pairs of an epoch, where those of each group count as often as its weight says.

    A weight of 2.5 takes all pairs of the group, in order, then all once more, then half of them: a
    fraction is a draw by `seed`, the same in every epoch, rounded to whole pairs, and in order too.
    """
    taken: list[int] = []
    for number, (group, weight) in enumerate(zip(groups, weights, strict=True)):
        times, share = divmod(weight, 1)
        generator = torch.Generator().manual_seed(seed + number)
        drawn = torch.randperm(len(group), generator=generator)[: round(share * len(group))]
        taken += [*group] * int(times)
        taken += [group[index] for index in sorted(drawn.tolist())]
    return taken
