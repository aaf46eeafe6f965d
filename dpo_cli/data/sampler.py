"""Order of the pairs: a pure function of the plan, so that a resume needs one integer."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from dpo_cli.learning_rate import last_steps


@dataclass(frozen=True)
class GlobalBatch:
    """Micro-batches of one optimizer step, over all ranks.

    first_step: number of the first micro-batch, from 0 over the whole run.
    """

    epoch: int
    first_step: int
    micro_batches: tuple[tuple[int, ...], ...]

    @property
    def last_step(self) -> int:
        """Number of the last micro-batch, whose learning rate the optimizer step uses."""
        return self.first_step + len(self.micro_batches) - 1


@dataclass(frozen=True)
class BatchSampler:
    """Distribution of `pairs` pairs over epochs, optimizer steps and micro-batches.

    `accumulation_steps` counts the micro-batches of one optimizer step on all ranks together; the
    order does not depend on which rank computes which. The last micro-batch of an epoch may have
    fewer pairs and the last step fewer micro-batches. A step never spans two epochs.
    """

    pairs: int
    batch_size: int
    accumulation_steps: int
    epochs: int
    shuffle: bool
    seed: int

    @property
    def micro_batches_per_epoch(self) -> int:
        """Number of micro-batches per epoch; the last one may be smaller."""
        return math.ceil(self.pairs / self.batch_size)

    @property
    def optimizer_steps_per_epoch(self) -> int:
        """Number of optimizer steps per epoch."""
        return math.ceil(self.micro_batches_per_epoch / self.accumulation_steps)

    @property
    def micro_batches(self) -> int:
        """Number of micro-batches in the run, T in the learning-rate schedule."""
        return self.epochs * self.micro_batches_per_epoch

    @property
    def optimizer_steps(self) -> int:
        """Number of optimizer steps in the run."""
        return self.epochs * self.optimizer_steps_per_epoch

    @property
    def last_steps(self) -> list[int]:
        """Numbers of the last micro-batch of each optimizer step."""
        return last_steps(self.micro_batches_per_epoch, self.accumulation_steps, self.epochs)

    def epoch_order(self, epoch: int) -> list[int]:
        """Return the pair indices in the order of an epoch (from 0).

        A shuffled epoch is `torch.randperm` with seed + epoch, as in MiniMind version 3.
        """
        if not self.shuffle:
            return list(range(self.pairs))
        generator = torch.Generator().manual_seed(self.seed + epoch)
        return torch.randperm(self.pairs, generator=generator).tolist()

    def micro_batches_of(self, epoch: int) -> list[tuple[int, ...]]:
        """Return the pair indices of each micro-batch of an epoch."""
        order = self.epoch_order(epoch)
        return [
            tuple(order[start : start + self.batch_size])
            for start in range(0, self.pairs, self.batch_size)
        ]

    def global_batches(self, start: int = 0) -> Iterator[GlobalBatch]:
        """Yield the batches of optimizer steps `start`, `start + 1`, ... to the end of the run."""
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
        """Return the number of micro-batches after a number of optimizer steps."""
        epochs, global_batches = divmod(optimizer_steps, self.optimizer_steps_per_epoch)
        in_epoch = min(global_batches * self.accumulation_steps, self.micro_batches_per_epoch)
        return epochs * self.micro_batches_per_epoch + in_epoch


def hold_out(
    pairs: int, fraction: float, seed: int, prompts: Sequence[int] | None = None
) -> tuple[list[int], list[int]]:
    """Split pair indices into (training, held out), both in file order.

    For a fraction above 0 both parts have at least one pair. Pairs of one prompt stay together, so
    that the number of held-out pairs may differ from the fraction by less than the pairs of a
    prompt. Only where that would change the number by more than half are they separated.

    Args:
        pairs: number of pairs.
        fraction: share to hold out.
        seed: seed of the order in which pairs are taken.
        prompts: label of each pair's prompt; None to take each pair by itself.
    """
    if not fraction:
        return list(range(pairs)), []
    count = min(max(1, round(fraction * pairs)), pairs - 1)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(pairs, generator=generator).tolist()
    chosen = set(order[:count] if prompts is None else _whole_prompts(order, count, prompts))
    return [i for i in range(pairs) if i not in chosen], sorted(chosen)


def _whole_prompts(order: Sequence[int], count: int, prompts: Sequence[int]) -> list[int]:
    """Take about `count` pairs in order, each with all other pairs of its prompt.

    If all prompts differ, these are the first `count` pairs.
    """
    groups: dict[int, list[int]] = {}
    for index in order:
        groups.setdefault(prompts[index], []).append(index)
    taken: list[int] = []
    left = []
    for group in groups.values():  # by the first pair of each
        if len(taken) + len(group) <= count:
            taken += group
        else:
            left.append(group)
    if len(taken) == count:
        return taken
    smallest = min(left, key=len)
    total = len(taken) + len(smallest)
    if total <= 1.5 * count and total < len(order):
        return taken + smallest
    if 2 * len(taken) >= count:
        return taken
    return (taken + [index for group in left for index in group])[:count]


def repeat(groups: Sequence[Sequence[int]], weights: Sequence[float], seed: int) -> list[int]:
    """Repeat the pairs of each group according to its weight.

    A weight of 2.5 takes all pairs of the group in order, then all again, then half of them in
    order. That half is drawn with `seed`, rounded to whole pairs, and is the same in every epoch.
    """
    repeated: list[int] = []
    for number, (group, weight) in enumerate(zip(groups, weights, strict=True)):
        times, share = divmod(weight, 1)
        generator = torch.Generator().manual_seed(seed + number)
        drawn = torch.randperm(len(group), generator=generator)[: round(share * len(group))]
        repeated += [*group] * int(times)
        repeated += [group[index] for index in sorted(drawn.tolist())]
    return repeated
