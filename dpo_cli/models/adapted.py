"""Models with the adapter that their weights may have."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from dpo_cli.compute.device import DTYPES
from dpo_cli.errors import DpoError
from dpo_cli.models.adapter import adapted_layers, attach, merged_layer, read_adapter
from dpo_cli.models.loading import ModelWeights, build_model, to_disk_names
from dpo_cli.profile import adapter_config
from dpo_cli.profile.model import Quantization
from dpo_cli.profile.schema import Profile


def build_adapted(weights: ModelWeights, *, dropout: float = 0.0) -> PreTrainedModel:
    """Build a model, see `build_model`, with the quantization and adapter of its weights."""
    model = build_model(
        weights.architecture, weights.state, dropout=dropout, quantization=weights.quantization
    )
    if weights.adapter is not None:
        attach(model, weights.adapter)
    return model


def changed_weights(model: PreTrainedModel, weights: ModelWeights) -> Iterator[tuple[str, Tensor]]:
    """Yield the weights that a model's adapter changes, merged, one at a time.

    Args:
        model: with an adapter; built of `weights`.
        weights: the adapter is merged into their state if the layers of the model are quantized.

    Yields:
        Name in the Hugging Face layout, and weight on the device of the model.
    """
    names = [f"{name}.weight" for name in adapted_layers(model)]
    # Numbered tensors, renamed by transformers, show which name became which.
    numbers = {name: torch.tensor(float(index)) for index, name in enumerate(names)}
    on_disk = {int(number): name for name, number in to_disk_names(model, numbers).items()}
    for index, layer in enumerate(adapted_layers(model).values()):
        name = on_disk[index]
        base = None if weights.quantization is None else weights.state[name]
        yield name, merged_layer(layer, base)


def merge_adapter(weights: ModelWeights) -> ModelWeights:
    """Return the weights with their adapter merged, in float32; without an adapter, as they are.

    The adapter is merged into the weights as they were read, not into quantized ones.
    """
    weights = replace(weights, quantization=None)
    if weights.adapter is None:
        return weights
    changed = dict(changed_weights(build_adapted(weights), weights))
    state = {name: changed.get(name, tensor).float() for name, tensor in weights.state.items()}
    return replace(weights, state=state, adapter=None)


def as_quantized(weights: ModelWeights, quantization: Quantization | None) -> ModelWeights:
    """Return weights of which models are built with this quantization.

    Raises:
        DpoError: the weights are float64.
    """
    if quantization is None:
        return weights
    if weights.dtype not in DTYPES.values():
        raise DpoError(
            f"model.quantization: {weights.dtype_name} weights are not quantized",
            "Save the weights in float32, or remove the key.",
        )
    # Other weights compute other log-probs, for the cache and for a resume.
    digest = hashlib.sha256(f"{weights.fingerprint} {quantization}".encode()).hexdigest()
    return replace(weights, quantization=quantization, fingerprint=digest)


def with_adapter(weights: ModelWeights, profile: Profile, directory: Path) -> ModelWeights:
    """Return weights with the adapter of `model.adapter`: merged, or to be continued.

    Raises:
        DpoError: the adapter does not fit the weights or `[lora]`.
    """
    adapter, digest = read_adapter(directory, weights.architecture)
    lora = profile.lora
    how = "continued" if lora.continue_adapter else "merged"
    fingerprint = hashlib.sha256(f"{weights.fingerprint} {digest} {how}".encode()).hexdigest()
    adapted = replace(weights, adapter=adapter, fingerprint=fingerprint)
    if not lora.continue_adapter:
        return merge_adapter(adapted)
    if different := adapter_config.differences(lora, adapter.settings):
        raise DpoError(
            f"lora.continue_adapter: [lora] differs from the adapter in {directory}",
            f"Set {', '.join(different)}.",
        )
    settings = {**adapter.settings, "lora_dropout": lora.dropout}
    return replace(adapted, adapter=replace(adapter, settings=settings, start=adapter.state))
