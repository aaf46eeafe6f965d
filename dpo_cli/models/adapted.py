"""Models with the adapter that their weights may have."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

from transformers import PreTrainedModel

from dpo_cli.errors import DpoError
from dpo_cli.models.adapter import attach, merged_layers, read_adapter
from dpo_cli.models.convert import StateDict
from dpo_cli.models.loading import ModelWeights, build_model, to_disk_names
from dpo_cli.profile import adapter_config
from dpo_cli.profile.schema import Profile


def build_adapted(weights: ModelWeights, *, dropout: float = 0.0) -> PreTrainedModel:
    """Build a model, see `build_model`, with the adapter of its weights."""
    model = build_model(weights.architecture, weights.state, dropout=dropout)
    if weights.adapter is not None:
        attach(model, weights.adapter)
    return model


def changed_weights(model: PreTrainedModel) -> StateDict:
    """Return the weights that a model's adapter changes, merged, in the Hugging Face layout."""
    return to_disk_names(model, merged_layers(model))


def merge_adapter(weights: ModelWeights) -> ModelWeights:
    """Return the weights with their adapter merged, in float32; without an adapter, as they are."""
    if weights.adapter is None:
        return weights
    changed = changed_weights(build_adapted(weights))
    state = {name: changed.get(name, tensor).float() for name, tensor in weights.state.items()}
    return replace(weights, state=state, adapter=None)


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
