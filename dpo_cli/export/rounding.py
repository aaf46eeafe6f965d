"""From float32 weights to the numbers that a half-precision file can hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from dpo_cli.compute.device import DTYPES
from dpo_cli.errors import DpoError
from dpo_cli.models.convert import StateDict

Rounding = Literal["nearest", "stochastic"]


def round_weights(
    state: Mapping[str, Tensor], dtype: str, rounding: Rounding, seed: int
) -> StateDict:
    """Every weight as a number of the format.

    Args:
        state: float32 weights by name.
        dtype: a key of `DTYPES`.
        rounding: to the nearest number, ties to the even one; or `round_stochastically`.
        seed: of the random numbers that stochastic rounding draws: the same weights and seed give
            the same file.

    Raises:
        DpoError: a weight is larger than the largest number of the format, which is not made
            infinite, nor silently made that number.
    """
    target, generator = DTYPES[dtype], torch.Generator().manual_seed(seed)
    rounded = {}
    for name in sorted(state):
        values = state[name].detach().cpu()
        _refuse_beyond(values, name, target)
        if rounding == "stochastic":
            rounded[name] = round_stochastically(values, target, generator)
        else:
            rounded[name] = values.to(target)
    return rounded


def round_stochastically(values: Tensor, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """Each value as one of its two neighbours in a format, the nearer the likelier.

    The neighbour above is taken with probability (value - below) / (above - below), so that the
    expectation is the value itself: updates far below the spacing survive in the mean over the
    weights (Croci et al., Stochastic rounding: implementation, error analysis and applications,
    2022). A value that the format holds stays as it is.

    Args:
        values: of any shape, at most the largest number of the format in magnitude.
        dtype: float16 or bfloat16.
        generator: one number is drawn for each value.
    """
    wide, limits = values.double(), torch.finfo(dtype)
    # A value is a mantissa of [0.5, 1) times a power of two, of which the spacing is a fixed share;
    # below the least normal number it stays the same, and so for zero, which has no power.
    mantissa, _ = torch.frexp(wide)
    spacing = (wide / mantissa).nan_to_num(nan=0.0).mul_(limits.eps / 2)
    spacing.clamp_(min=limits.smallest_normal * limits.eps)
    steps = wide / spacing
    below = steps.floor()
    drawn = torch.rand(values.shape, generator=generator, dtype=torch.float64)
    return ((below + (drawn < steps - below)) * spacing).to(dtype)


def _refuse_beyond(values: Tensor, name: str, dtype: torch.dtype) -> None:
    largest = torch.finfo(dtype).max
    if (reached := values.abs().max().item()) > largest:
        format_name = str(dtype).removeprefix("torch.")
        raise DpoError(
            f"{name} holds a weight of magnitude {reached:.6g}, and the largest number of"
            f" {format_name} is {largest:.6g}",
            "export it with --dtype float32; a weight as large is rarely a sound one",
        )
