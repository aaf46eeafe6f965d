"""What the pairs of one optimizer step came to, on all ranks."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from dpo_cli.data.batching import Batch
from dpo_cli.distributed.process_group import ProcessGroup
from dpo_cli.objective.losses import PAIR_METRICS, PairScores


class StepMetrics:
    """Adds up what a window's pairs came to: on the device, and over all ranks when it is read.

    Args:
        micro_batches: those of the window, each of whose losses is asked for afterwards.
    """

    def __init__(self, micro_batches: Sequence[Sequence[int]]) -> None:
        self.pairs = 0
        self.tokens = 0
        self.padding_tokens = 0
        self._micro_batches = micro_batches
        self._indices: list[int] = []
        self._losses: list[Tensor] = []
        self._balanced: list[int] = []
        self._balances: list[Tensor] = []
        self._sums: dict[str, Tensor] = {}
        self._read: Sequence[float] = ()

    def add(
        self, indices: Sequence[int], pairs: PairScores, balance: Tensor | None, batch: Batch
    ) -> None:
        """Take in what one forward came to; nothing waits for the device.

        Args:
            indices: of the pairs.
            pairs: their losses and rewards.
            balance: of the experts, where there are any.
            batch: the same pairs' tokens.
        """
        self.pairs += batch.pairs
        self.tokens += batch.computed_tokens
        self.padding_tokens += batch.padding_tokens
        self._indices += indices
        self._losses.append(pairs.losses.detach())
        if balance is not None:
            # Where experts are balanced, micro-batches are computed as they are.
            self._balanced.append(indices[0])
            self._balances.append(balance.detach().double())
        for name, figure in pairs.metric_sums().items():
            self._sums[name] = self._sums.get(name, 0.0) + figure

    def read(self, group: ProcessGroup, grad_norm: Tensor) -> dict[str, float]:
        """The mean over all pairs of every figure: the one moment that waits for the device."""
        on_device = [*self._sums.values(), grad_norm]
        own = [f.double()[None] for f in on_device] + self._losses
        own += [balance[None] for balance in self._balances]
        its = iter(torch.cat(own).tolist())
        sums = {name: next(its) for name in self._sums}
        norm = {"grad_norm": next(its)}
        losses = dict(zip(self._indices, its, strict=False))
        balances = dict(zip(self._balanced, its, strict=True))
        counts = [self.pairs, self.tokens, self.padding_tokens, len(balances)]
        figures = group.all_reduce_sum(
            [
                *counts,
                *(float(name in sums) for name in PAIR_METRICS),
                *(sums.get(name, 0.0) for name in PAIR_METRICS),
                *(losses.get(index, 0.0) for its in self._micro_batches for index in its),
                *(balances.get(its[0], 0.0) for its in self._micro_batches),
            ]
        )
        self.pairs, self.tokens, self.padding_tokens, balanced = map(int, figures[: len(counts)])
        its = iter(figures[len(counts) :])
        is_there = [next(its) for _ in PAIR_METRICS]
        means = {
            name: total / self.pairs
            for name, known, total in zip(PAIR_METRICS, is_there, its, strict=False)
            if known
        }
        self._read = figures[len(counts) + 2 * len(PAIR_METRICS) :]
        if balanced:
            means["aux_loss"] = sum(self._read[-balanced:]) / balanced
        return means | norm

    def losses(self, balance_coefficient: float) -> tuple[float, ...]:
        """The loss of each micro-batch, as the gradient has it; after `read`."""
        its = iter(self._read)
        means = [
            sum(itertools.islice(its, len(indices))) / len(indices)
            for indices in self._micro_batches
        ]
        return tuple(
            loss + balance_coefficient * balance for loss, balance in zip(means, its, strict=True)
        )
