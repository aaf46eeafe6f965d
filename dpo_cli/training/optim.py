"""Learning-rate schedules of both MiniMind generations, and the optimizer they drive."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

ScheduleName = Literal["minimind2", "minimind3"]


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


def make_optimizer(parameters: Iterable[nn.Parameter]) -> torch.optim.AdamW:
    """AdamW with torch's defaults (weight decay 0.01 on everything), as both scripts use it.

    Its learning rate is set before every step. On CUDA it is one kernel for all weights.
    """
    weights = list(parameters)
    return torch.optim.AdamW(weights, lr=0.0, fused=True if weights[0].is_cuda else None)


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Use this rate from the next step on."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
