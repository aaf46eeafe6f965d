"""AdamW, as both MiniMind versions use it, and with Kahan summation."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import nn

COMPENSATION = "compensation"
"""Name of the compensation in the state of `KahanAdamW`, beside the moments."""


class KahanAdamW(torch.optim.AdamW):
    """AdamW that loses no part of an update to rounding.

    At a learning rate of 1e-8, an update is less than half the spacing of float32 at most weights,
    and would be rounded away. Here a weight is the sum of two float32 numbers: the weight that the
    model computes with, and a compensation, the part of the updates that the weight cannot hold.
    Each update is added to both (Kahan 1965, Further remarks on reducing truncation errors), by a
    sum that is exact whichever summand is larger (Knuth, The Art of Computer Programming 2, 4.2.2,
    theorem B). The moments have the same bits as AdamW's.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update each weight that has a gradient; `closure` is part of torch's interface."""
        moving = [
            (weight, weight.clone(), group["lr"] * group["weight_decay"])
            for group in self.param_groups
            for weight in group["params"]
            if weight.grad is not None
        ]
        # On weights of zero, AdamW leaves the update itself, in the full precision of its size.
        for weight, _, _ in moving:
            weight.zero_()
        super().step(closure)
        for weight, before, decay in moving:
            state = self.state[weight]
            if COMPENSATION not in state:
                state[COMPENSATION] = torch.zeros_like(weight)
            # Weight decay is part of the update: AdamW multiplied zeros by it.
            update = weight.sub(before, alpha=decay).add_(state[COMPENSATION])
            weight.copy_(before + update)
            # Knuth's TwoSum: the rounding error of before + update, exactly.
            arrived = weight - before
            state[COMPENSATION] = (before - (weight - arrived)).add_(update - arrived)


def make_optimizer(
    parameters: Iterable[nn.Parameter], *, kahan_summation: bool = False
) -> torch.optim.AdamW:
    """Return AdamW with torch's defaults, as both scripts use it: weight decay 0.01 on all weights.

    The learning rate is set before every step. On CUDA, one kernel updates all weights.

    Args:
        parameters: float32.
        kahan_summation: use `KahanAdamW`.
    """
    weights = list(parameters)
    kind = KahanAdamW if kahan_summation else torch.optim.AdamW
    return kind(weights, lr=0.0, fused=weights[0].device.type != "cpu" or None)


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Set the learning rate of the next step."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
