"""What a file has of the update that a run made: half precision swallows small ones."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from dpo_cli.compute.device import DTYPES
from dpo_cli.errors import DpoError
from dpo_cli.models.loading import ModelWeights
from dpo_cli.profile.schema import Profile
from dpo_cli.run.directory import RunDirectory
from dpo_cli.run.plan import Plan
from dpo_cli.training.weights import read_model_weights


@dataclass(frozen=True)
class UpdateRetention:
    """The file against the float32 state, by the update: the state less the weights of the start.

    Attributes:
        changed: share of weights whose value in the file is not the starting one's as the file's
            format has it.
        kept: the part of the update that the file has, along the update's direction:
            <file - start, update> / <update, update>. 1 where nothing is lost; with stochastic
            rounding 1 in expectation.
        relative_error: |file - state| / |update|. Stochastic rounding raises it: what it adds is
            noise, which is not along the update.
        start_error: |start as the format has it - start| / |update|: what the format costs even
            without training. 0 where the weights were born in it.
        born: the format of the weights that the run began with.
    """

    changed: float
    kept: float
    relative_error: float
    start_error: float
    source_dtype: str


def read_start(run: RunDirectory, profile: Profile, saved_plan: Plan) -> ModelWeights:
    """The weights that a run began with.

    Args:
        run: whose they are.
        profile: says where they lie.
        saved_plan: the run's plan.

    Raises:
        DpoError: they are gone, or others lie in their place.
    """
    start = read_model_weights(profile, "weights", run.path.parent, run.path)
    if start.fingerprint != saved_plan.fingerprints["weights"]:
        raise DpoError("model.weights: the content is not what the run began with")
    return start


def measure_update_retention(
    start: ModelWeights, state: Mapping[str, Tensor], exported: Mapping[str, Tensor], dtype: str
) -> UpdateRetention | None:
    """Compare the weights of a file with those of the state it was made from.

    Args:
        start: what the run began with.
        state: the float32 training state, under the start's names.
        exported: the file's weights, likewise.
        dtype: of the file, a key of `DTYPES`.

    Returns:
        None where no weight has moved at all.
    """
    changed = 0
    update_squared = kept = error_squared = start_error_squared = 0.0
    for name, before in start.state.items():
        rounded_before = before.to(DTYPES[dtype])
        changed += int((exported[name] != rounded_before).sum())
        begun, trained, written = (
            tensor.double() for tensor in (before, state[name], exported[name])
        )
        update = trained - begun
        update_squared += _squared(update)
        kept += float(torch.sum((written - begun) * update))
        error_squared += _squared(written - trained)
        start_error_squared += _squared(rounded_before.double() - begun)
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
