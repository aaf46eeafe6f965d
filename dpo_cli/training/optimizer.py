"""Learning-rate schedules of both MiniMind versions, and the optimizer they drive."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

ScheduleName = Literal["minimind2", "minimind3"]
COMPENSATION = "compensation"
"""Under which name `KahanAdamW` keeps it, beside the moments."""


@dataclass(frozen=True)
class LearningRate:
    """The learning rate at each of T micro-batches.

    minimind2: lr * (0.1 + 0.5 * (1 + cos(pi t / T))), t from 0: begins at 1.1 lr.
    minimind3: lr * (0.1 + 0.45 * (1 + cos(pi t / T))), t from 1: ends exactly at 0.1 lr.

    For the first `warmup_iters` micro-batches it is multiplied by (1, 2, ...) / warmup_iters.
    """

    schedule: ScheduleName
    peak: float
    micro_batches: int
    warmup_iters: int

    def at(self, step: int) -> float:
        """The rate of micro-batch `step`, counted from 0."""
        if self.schedule == "minimind2":
            cosine = 0.5 * (1 + math.cos(math.pi * step / self.micro_batches))
        else:
            cosine = 0.45 * (1 + math.cos(math.pi * (step + 1) / self.micro_batches))
        warmth = min(1.0, (step + 1) / self.warmup_iters) if self.warmup_iters else 1.0
        return self.peak * (0.1 + cosine) * warmth


class KahanAdamW(torch.optim.AdamW):
    """AdamW whose weights lose nothing of their updates.

    A master weight is the sum of two float32 numbers: the weight, which the model computes with,
    and its compensation, what the weight could not hold of the updates so far, at most half its
    spacing. Each update is added to both (Kahan, Further remarks on reducing truncation errors,
    1965), by a sum that is exact whichever summand is larger (Knuth, The Art of Computer
    Programming 2, 4.2.2, theorem B). Moments are AdamW's to the bit.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of every weight that has a gradient. `closure` is there for torch's sake."""
        moving = [
            (weight, weight.clone(), group["lr"] * group["weight_decay"])
            for group in self.param_groups
            for weight in group["params"]
            if weight.grad is not None
        ]
        # From zero AdamW arrives at its update, rounded to the update's own precision.
        for weight, _, _ in moving:
            weight.zero_()
        super().step(closure)
        for weight, before, decay in moving:
            state = self.state[weight]
            if COMPENSATION not in state:
                state[COMPENSATION] = torch.zeros_like(weight)
            update = weight.sub(before, alpha=decay).add_(state[COMPENSATION])
            weight.copy_(before + update)
            arrived = weight - before
            state[COMPENSATION] = (before - (weight - arrived)).add_(update - arrived)


def make_optimizer(
    parameters: Iterable[nn.Parameter], *, kahan_summation: bool = False
) -> torch.optim.AdamW:
    """AdamW with torch's defaults (weight decay 0.01 on everything), as both scripts use it.

    Its learning rate is set before every step. On CUDA it is one kernel for all weights.

    Args:
        parameters: the weights, in float32.
        kahan_summation: keep what they cannot hold of an update.
    """
    weights = list(parameters)
    kind = KahanAdamW if kahan_summation else torch.optim.AdamW
    return kind(weights, lr=0.0, fused=True if weights[0].is_cuda else None)


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Use this rate from the next step on."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
