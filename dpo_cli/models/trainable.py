"""`Trainable`: what a run optimizes, saves, counts, compares with its start and exports.

A *state* is the content of `weights.safetensors` in a checkpoint: float32 tensors on the CPU, under
names that do not depend on the version of transformers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from dpo_cli.hub.download import PREFIX, is_on_hub
from dpo_cli.models.adapted import changed_weights
from dpo_cli.models.adapter import (
    Adapter,
    adapter_parameters,
    adapter_state,
    as_at_start,
    new_adapter,
    write_adapter,
)
from dpo_cli.models.convert import StateDict
from dpo_cli.models.loading import ModelWeights, build_model, to_disk_names
from dpo_cli.models.rounding import Rounding, round_weights
from dpo_cli.models.saving import write_model
from dpo_cli.models.split_weights import full_weight
from dpo_cli.profile.schema import Profile

AtStart = Callable[[PreTrainedModel], AbstractContextManager[None]]


class Trainable(Protocol):
    """Part of a model that a run trains. Models are passed in; this object holds none."""

    @property
    def parameters(self) -> int:
        """Number of optimized weights, tied ones counted once."""
        ...

    @property
    def frozen_parameters(self) -> int:
        """Number of weights that are kept in memory and not optimized."""
        ...

    @property
    def start(self) -> ModelWeights:
        """Model before the first step."""
        ...

    @property
    def at_start(self) -> AtStart | None:
        """Context of a model that computes what it did before the first step; None if lost.

        Gradients must be off in the context.
        """
        ...

    def at(self, state: StateDict) -> ModelWeights:
        """Return the model with the state of a checkpoint."""
        ...

    # --- of a model that `start` or `at` describes -----------------------------------------------

    def optimized(self, model: PreTrainedModel) -> dict[str, nn.Parameter]:
        """Return the optimized parameters by their name in memory."""
        ...

    def state(self, model: PreTrainedModel) -> StateDict:
        """Return the tensors of a checkpoint, on their device and not copied."""
        ...

    def state_before(self, model: PreTrainedModel) -> Mapping[str, Tensor]:
        """Return the state before the first step, which `model` has not taken yet."""
        ...

    def to_disk_names(self, model: PreTrainedModel, tensors: Mapping[str, Tensor]) -> StateDict:
        """Rename tensors of the optimized parameters, such as moments, to the names of a state."""
        ...

    def from_disk_names(self, model: PreTrainedModel, tensors: StateDict) -> Mapping[str, Tensor]:
        """Rename tensors with the names of a state to those of `optimized`."""
        ...

    def to_native_names(self, tensors: StateDict) -> StateDict:
        """Rename tensors with the names of a state to those that the model's makers use."""
        ...

    def has_first_gradient(self, name: str) -> bool:
        """Return False for a tensor whose gradient is zero in the first step, by design."""
        ...

    def changed_weights(self, model: PreTrainedModel) -> Iterable[tuple[str, Tensor]]:
        """Return the weights of the whole model that training can change, on their device.

        They are in the Hugging Face layout, with names of `ModelWeights.state`. Merged weights are
        computed one at a time: together they need as much memory as the model.
        """
        ...

    # --- weights beside a checkpoint, for other tools --------------------------------------------

    def file_name(self, prefix: str) -> str:
        """Return the name of the file or directory that `write` writes."""
        ...

    def write(
        self,
        path: Path,
        state: StateDict,
        dtype: str,
        rounding: Rounding,
        seed: int,
        tokenizer: Path,
    ) -> None:
        """Write the trained weights for other tools, atomically.

        Args:
            path: file or directory; may exist already.
            state: state of a checkpoint.
            dtype: a key of `DTYPES`.
            rounding: of weights that do not have this dtype.
            seed: seed of stochastic rounding.
            tokenizer: folder whose tokenizer files are copied into the directory of a whole model.
        """
        ...


@dataclass(frozen=True)
class FullTraining:
    """Training of every weight; a `Trainable`.

    Attributes:
        start: starting weights.
    """

    start: ModelWeights

    @property
    def parameters(self) -> int:
        """Number of weights of the model, tied ones counted once."""
        return self.start.parameters

    @property
    def frozen_parameters(self) -> int:
        """Return 0."""
        return 0

    @property
    def at_start(self) -> None:
        """Return None: every weight changes."""
        return None

    def at(self, state: StateDict) -> ModelWeights:
        """Return the model with these weights."""
        return replace(self.start, state=state)

    def optimized(self, model: PreTrainedModel) -> dict[str, nn.Parameter]:
        """Return all parameters."""
        return dict(model.named_parameters())

    def state(self, model: PreTrainedModel) -> StateDict:
        """Return all weights in the Hugging Face layout, float32."""
        # By identity: tied weights have several names, and are merged once.
        full = {id(parameter): full_weight(parameter) for parameter in model.parameters()}
        state = model.state_dict(keep_vars=True)
        return to_disk_names(
            model, {name: full.get(id(each), each).detach() for name, each in state.items()}
        )

    def state_before(self, model: PreTrainedModel) -> Mapping[str, Tensor]:
        """Return the starting weights as they were read, without a copy."""
        return self.start.state

    def to_disk_names(self, model: PreTrainedModel, tensors: Mapping[str, Tensor]) -> StateDict:
        """Rename tensors to the Hugging Face layout."""
        return to_disk_names(model, dict(tensors))

    def from_disk_names(self, model: PreTrainedModel, tensors: StateDict) -> Mapping[str, Tensor]:
        """Rename tensors from the Hugging Face layout.

        transformers converts names and stacks experts only while it loads a model, so the tensors
        are loaded as if they were the weights of one.
        """
        carrier = build_model(self.start.architecture, tensors)
        return {name: parameter.detach() for name, parameter in carrier.named_parameters()}

    def to_native_names(self, tensors: StateDict) -> StateDict:
        """See `Architecture.to_native_names`."""
        return self.start.architecture.to_native_names(tensors)

    def has_first_gradient(self, name: str) -> bool:
        """Return True."""
        return True

    def changed_weights(self, model: PreTrainedModel) -> Iterable[tuple[str, Tensor]]:
        """Return all weights."""
        return self.state(model).items()

    def file_name(self, prefix: str) -> str:
        """See `Architecture.file_name`."""
        return self.start.architecture.file_name(prefix)

    def write(
        self,
        path: Path,
        state: StateDict,
        dtype: str,
        rounding: Rounding,
        seed: int,
        tokenizer: Path,
    ) -> None:
        """Write a MiniMind file or a Hugging Face directory."""
        architecture = self.start.architecture
        if rounding == "stochastic":
            state = round_weights(state, dtype, rounding, seed, architecture.own_dtypes(dtype))
        write_model(path, state, architecture, dtype, tokenizer)


@dataclass(frozen=True)
class LoraTraining:
    """Training of an adapter beside frozen weights; a `Trainable`.

    Attributes:
        start: starting weights with the adapter that training begins with.
        base: name of the base model on the Hub, if it is there.
    """

    start: ModelWeights
    base: str | None = None

    @property
    def adapter(self) -> Adapter:
        """Adapter that training begins with."""
        assert self.start.adapter is not None
        return self.start.adapter

    @property
    def parameters(self) -> int:
        """Number of weights of the adapter."""
        return self.adapter.parameters

    @property
    def frozen_parameters(self) -> int:
        """Number of weights of the model, and of the adapter of the reference."""
        return self.start.parameters + (self.parameters if self.adapter.start else 0)

    @property
    def at_start(self) -> AtStart:
        """Return `as_at_start`: without the trained adapter, the model is its start."""
        return as_at_start

    def at(self, state: StateDict) -> ModelWeights:
        """Return the model with these tensors of the adapter."""
        return replace(self.start, adapter=replace(self.adapter, state=state))

    def optimized(self, model: PreTrainedModel) -> dict[str, nn.Parameter]:
        """Return the parameters of the adapter."""
        return adapter_parameters(model)

    def state(self, model: PreTrainedModel) -> StateDict:
        """Return the tensors of the adapter under the names of peft's files."""
        return adapter_state(model)

    def state_before(self, model: PreTrainedModel) -> Mapping[str, Tensor]:
        """Return a copy of the adapter on the CPU."""
        return {name: each.detach().cpu().clone() for name, each in self.state(model).items()}

    def to_disk_names(self, model: PreTrainedModel, tensors: Mapping[str, Tensor]) -> StateDict:
        """Rename tensors to the names of peft's files."""
        return adapter_state(model, tensors)

    def from_disk_names(self, model: PreTrainedModel, tensors: StateDict) -> Mapping[str, Tensor]:
        """Rename tensors from the names of peft's files."""
        in_memory = {name: index for index, name in enumerate(self.optimized(model))}
        # Numbered tensors, renamed by peft, show which name became which.
        numbers = {name: torch.tensor(float(number)) for name, number in in_memory.items()}
        names = list(in_memory)
        renamed = self.to_disk_names(model, numbers)
        return {names[int(number)]: tensors[name] for name, number in renamed.items()}

    def to_native_names(self, tensors: StateDict) -> StateDict:
        """Return the tensors unchanged."""
        return tensors

    def has_first_gradient(self, name: str) -> bool:
        """Return False for the first factors: the second ones, which follow, begin at zero."""
        return self.adapter.state is not None or ".lora_A." not in name

    def changed_weights(self, model: PreTrainedModel) -> Iterable[tuple[str, Tensor]]:
        """Return the weights of the adapted layers with the adapter merged."""
        return changed_weights(model, self.start)

    def file_name(self, prefix: str) -> str:
        """See `adapter_name`."""
        return adapter_name(prefix)

    def write(
        self,
        path: Path,
        state: StateDict,
        dtype: str,
        rounding: Rounding,
        seed: int,
        tokenizer: Path,
    ) -> None:
        """Write the directory of the adapter for peft, in float32."""
        write_adapter(path, self.adapter, state, self.base)


def adapter_name(prefix: str) -> str:
    """Return the name of the directory of an adapter."""
    return f"{prefix}_adapter"


def trainable_of(profile: Profile, weights: ModelWeights) -> Trainable:
    """Return what a profile trains of these starting weights.

    Raises:
        DpoError: adapters are to be trained, and peft is missing or a setting does not fit the
            model.
    """
    if not profile.lora.is_on:
        return FullTraining(weights)
    adapter = weights.adapter or new_adapter(weights.architecture, profile.lora, profile.train.seed)
    return LoraTraining(replace(weights, adapter=adapter), hub_name(profile))


def hub_name(profile: Profile) -> str | None:
    """Return the name on the Hub of the model to which the trained adapter belongs."""
    name = profile.model.weights
    is_merged = profile.model.adapter is not None and not profile.lora.continue_adapter
    if name is None or is_merged or not is_on_hub(name):
        return None
    return name.removeprefix(PREFIX).partition("@")[0]
