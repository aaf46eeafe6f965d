"""Update retention: the share of the training update that survives rounding to half precision."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from dpo_cli.compute.device import DTYPES
from dpo_cli.models.loading import ModelWeights


@dataclass(frozen=True)
class UpdateRetention:
    """Comparison of an exported file with the float32 training state.

    The update is the training state minus the starting weights.

    Attributes:
        changed: share of the weights whose value in the file differs from the starting weights,
            rounded to the same dtype.
        kept: share of the update in the file, along the update's direction: <file - start, update>
            / <update, update>. 1 if nothing is lost; 1 in expectation with stochastic rounding.
        relative_error: |file - state| / |update|. Stochastic rounding raises it by its noise,
            which is not along the update.
        start_error: |rounded start - start| / |update|: error of the dtype even without training.
            0 if the starting weights have this dtype.
        source_dtype: dtype of the starting weights.
    """

    changed: float
    kept: float
    relative_error: float
    start_error: float
    source_dtype: str


def measure_update_retention(
    start: ModelWeights, state: Mapping[str, Tensor], exported: Mapping[str, Tensor], dtype: str
) -> UpdateRetention | None:
    """Compare exported weights with the training state and the starting weights.

    Args:
        start: starting weights.
        state: float32 training state, with the names of `start`.
        exported: weights of the file, with the same names.
        dtype: dtype of the file, a key of `DTYPES`.

    Returns:
        None if no weight has changed at all.
    """
    changed = 0
    update_squared = kept = error_squared = start_error_squared = 0.0
    own = start.architecture.own_dtypes(dtype)
    for name, before in start.state.items():
        rounded_before = before.to(DTYPES[own.get(name, dtype)])
        changed += int((exported[name] != rounded_before).sum())
        # In float64: a float32 sum over millions of tiny squares would lose most of them.
        begin, trained, written = (
            tensor.double() for tensor in (before, state[name], exported[name])
        )
        update = trained - begin
        update_squared += _squared(update)
        kept += float(torch.sum((written - begin) * update))
        error_squared += _squared(written - trained)
        start_error_squared += _squared(rounded_before.double() - begin)
    if not update_squared:
        return None
    return UpdateRetention(
        changed=changed / start.parameters,
        kept=kept / update_squared,
        relative_error=math.sqrt(error_squared / update_squared),
        start_error=math.sqrt(start_error_squared / update_squared),
        source_dtype=start.dtype_name,
    )


def _squared(difference: Tensor) -> float:
    return float(difference.square().sum())
