"""Rounding of float32 weights to half precision."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor

from dpo_cli.compute.device import DTYPES
from dpo_cli.errors import DpoError
from dpo_cli.models.convert import StateDict

Rounding = Literal["nearest", "stochastic"]


def default_rounding(dtype: str, source_dtype: str) -> Rounding:
    """Return the rounding of a file in `dtype` for weights that started in `source_dtype`.

    Stochastic for bfloat16 weights: their spacing is so wide that the nearest values keep a fifth
    of an update at the usual learning rate of 1e-6 (docs/precision.md). Weights that the
    training did not move keep their value. Not for weights that started in another dtype: each of
    them would get noise, moved or not.
    """
    return "stochastic" if dtype == source_dtype == "bfloat16" else "nearest"


def round_weights(
    state: Mapping[str, Tensor],
    dtype: str,
    rounding: Rounding,
    seed: int,
    own_dtypes: Mapping[str, str] = MappingProxyType({}),
) -> StateDict:
    """Round every weight to a dtype.

    Args:
        state: float32 weights by name.
        dtype: a key of `DTYPES`.
        rounding: "nearest" (ties to even), or "stochastic", see `round_stochastically`.
        seed: seed of stochastic rounding; equal weights and seeds give equal files.
        own_dtypes: dtypes of weights that keep another one, see `Architecture.own_dtypes`.

    Raises:
        DpoError: a weight exceeds the range of the dtype. It is neither clipped nor made infinite.
    """
    generator = torch.Generator().manual_seed(seed)
    rounded = {}
    for name in sorted(state):  # a fixed order, because all tensors share one generator
        values, target = state[name].detach().cpu(), DTYPES[own_dtypes.get(name, dtype)]
        _refuse_overflow(values, name, target)
        if rounding == "stochastic" and target != torch.float32:
            rounded[name] = round_stochastically(values, target, generator)
        else:
            rounded[name] = values.to(target)
    return rounded


def round_stochastically(values: Tensor, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """Round each value to one of its two neighbors in `dtype` at random.

    The upper neighbor has the probability (value - below) / (above - below), so that the
    expectation is the value itself: updates far below the spacing are preserved on average over the
    weights (Croci et al., Stochastic rounding: implementation, error analysis and applications,
    2022). A value that `dtype` represents exactly does not change.

    Args:
        values: float32 tensor of any shape, within the range of `dtype`.
        dtype: float16 or bfloat16.
        generator: source of one random number per value.
    """
    wide, limits = values.double(), torch.finfo(dtype)
    # value = mantissa * 2**exponent with a mantissa in [0.5, 1). The spacing is a fixed fraction of
    # 2**exponent. For subnormal numbers and zero (0 / 0 = NaN) it is constant.
    mantissa, _ = torch.frexp(wide)
    spacing = (wide / mantissa).nan_to_num(nan=0.0).mul_(limits.eps / 2)
    spacing.clamp_(min=limits.smallest_normal * limits.eps)
    steps = wide / spacing
    below = steps.floor()
    # In float64: a float32 random number has too few bits for tiny probabilities.
    drawn = torch.rand(values.shape, generator=generator, dtype=torch.float64)
    return ((below + (drawn < steps - below)) * spacing).to(dtype)


def _refuse_overflow(values: Tensor, name: str, dtype: torch.dtype) -> None:
    largest = torch.finfo(dtype).max
    if (magnitude := values.abs().max().item()) > largest:
        dtype_name = str(dtype).removeprefix("torch.")
        raise DpoError(
            f"{name} has a weight of magnitude {magnitude:.6g}, and the largest {dtype_name} is"
            f" {largest:.6g}",
            'Set export.dtype = "float32", and check the model: such large weights are rarely'
            " right.",
        )
