"""`Architecture`: the interface of both kinds of models, and conversions between the kinds.

MiniMind's architectures are inferred from the names and shapes of weights (`minimind`, `infer`),
all others are read from a transformers configuration (`huggingface`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal, Protocol

import transformers
from torch import Tensor

from dpo_cli.errors import DpoError
from dpo_cli.models.convert import StateDict
from dpo_cli.models.huggingface import HuggingFace
from dpo_cli.models.minimind import MiniMind
from dpo_cli.objective.aux_loss import AuxLossKind

_MINIMIND_VERSIONS: Mapping[str, Literal[2, 3]] = {
    "llama": 2,
    "granitemoeshared": 2,
    "qwen3": 3,
    "qwen3_moe": 3,
}
"""Model types in transformers that compute the function of a MiniMind version."""
_IRRELEVANT_SETTINGS = (
    *("architectures", "bos_token_id", "eos_token_id", "pad_token_id", "use_cache", "dtype"),
    *("transformers_version", "_name_or_path", "initializer_range", "max_position_embeddings"),
    *("router_aux_loss_coef", "output_router_logits", "max_window_layers", "pretraining_tp"),
)
"""Settings that do not change the function of given weights."""


class Architecture(Protocol):
    """Settings that determine a model's function, and the format of its weights."""

    @property
    def name(self) -> str:
        """Name in the plan, for example "minimind2" or "llama"."""
        ...

    @property
    def description(self) -> str:
        """One-line summary for the user."""
        ...

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding; a tokenizer may have fewer entries."""
        ...

    @property
    def hidden_size(self) -> int:
        """Width of the hidden states."""
        ...

    @property
    def num_hidden_layers(self) -> int:
        """Number of decoder blocks."""
        ...

    @property
    def num_attention_heads(self) -> int:
        """Query heads per layer."""
        ...

    @property
    def num_key_value_heads(self) -> int:
        """Key and value heads per layer."""
        ...

    @property
    def head_dim(self) -> int:
        """Width of an attention head."""
        ...

    @property
    def intermediate_size(self) -> int:
        """Width of a feed-forward block, or of one expert."""
        ...

    @property
    def ffn_blocks_per_token(self) -> int:
        """Feed-forward blocks per token and layer."""
        ...

    @property
    def max_positions(self) -> int | None:
        """Longest sequence in tokens; None without a limit."""
        ...

    @property
    def use_moe(self) -> bool:
        """True if the feed-forward blocks are mixtures of experts."""
        ...

    @property
    def aux_loss_kind(self) -> AuxLossKind | None:
        """Definition of the aux_loss that trains the router; None if none is known."""
        ...

    @property
    def default_router_aux_loss_coef(self) -> float:
        """Coefficient of the aux_loss if the profile sets none."""
        ...

    @property
    def has_constant_expert_weights(self) -> bool:
        """True if only the aux_loss sends a gradient to the router."""
        ...

    @property
    def supports_packing(self) -> bool:
        """True if packed rows need no trial; see `dpo_cli.models.support`."""
        ...

    @property
    def stop_ids(self) -> frozenset[int]:
        """Tokens that end an answer according to the model; the tokenizer may add one."""
        ...

    @property
    def tokenizer_hint(self) -> str:
        """Sentence that helps the user to find the tokenizer of these weights."""
        ...

    def file_name(self, prefix: str) -> str:
        """Return the name of the weights file or directory."""
        ...

    def file_dtype(self, source_dtype: str) -> str:
        """Return the dtype to save in, given the dtype of the starting weights."""
        ...

    def own_dtypes(self, dtype: str) -> Mapping[str, str]:
        """Return the weights that keep another dtype in a file of `dtype`, with that dtype.

        For example the float32 norms of a bfloat16 model; none if `dtype` is not that of the
        starting weights.
        """
        ...

    def to_native_names(self, state: Mapping[str, Tensor]) -> StateDict:
        """Rename weights from the Hugging Face layout to the names that the model's makers use."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for the plan; `architecture_of` reads them back."""
        ...

    def config(self, dropout: float = 0.0) -> transformers.PreTrainedConfig:
        """Return the configuration of the transformers model that computes this function.

        Args:
            dropout: probability of dropping an attention weight in training.
        """
        ...


def architecture_of(shape: Mapping[str, Any]) -> Architecture:
    """Return the architecture that `Architecture.to_dict` described."""
    if "config" in shape:
        return HuggingFace(shape["config"], shape["generation_config"], shape.get("dtypes", {}))
    return MiniMind(**shape)


def as_minimind(architecture: Architecture, source: str) -> MiniMind:
    """Return the MiniMind model that computes the same function.

    Args:
        architecture: of either kind.
        source: where the model comes from, for error messages.

    Raises:
        DpoError: there is no such MiniMind model; the settings that differ are listed.
    """
    if isinstance(architecture, MiniMind):
        return architecture
    version = _MINIMIND_VERSIONS.get(architecture.name)
    if version is None:
        raise DpoError(
            f"{source}: MiniMind has no model that computes {architecture.name}",
            f"Use a model of one of the types {', '.join(_MINIMIND_VERSIONS)}.",
        )
    assert isinstance(architecture, HuggingFace)
    minimind = MiniMind(
        version=version,
        hidden_size=architecture.hidden_size,
        num_hidden_layers=architecture.num_hidden_layers,
        vocab_size=architecture.vocab_size,
        intermediate_size=architecture.intermediate_size,
        num_experts=architecture.num_experts,
        num_attention_heads=architecture.num_attention_heads,
        num_key_value_heads=architecture.num_key_value_heads,
        head_dim=architecture.head_dim,
        num_experts_per_tok=architecture.num_experts_per_tok or (2 if version == 2 else 1),
        norm_topk_prob=architecture.norm_topk_prob is not False,
        rope_theta=float(architecture.rope_theta or 0),
        rms_norm_eps=float(architecture.rms_norm_eps or 0),
    )
    # MiniMind fixes settings that a configuration may change (activation, biases, scalings, untied
    # heads), so the two configurations are compared as a whole.
    if different := differences(architecture, minimind):
        raise DpoError(
            f"{source}: no MiniMind model computes the same function",
            "Train the model as it is: set model.weights to the Hugging Face directory.",
            [
                f"{name} = {value}, but {required} in MiniMind"
                for name, (value, required) in different.items()
            ],
        )
    return minimind


def differences(first: Architecture, second: Architecture) -> dict[str, tuple[Any, Any]]:
    """Return the settings in which two architectures compute different functions.

    For models other than MiniMind only settings of the second are compared.

    Returns:
        Pairs of values, (first, second), by the name of the setting.
    """
    if isinstance(first, MiniMind) and isinstance(second, MiniMind):
        first_settings, second_settings = first.to_dict(), second.to_dict()
        ignored: tuple[str, ...] = ()
    else:
        first_settings, second_settings = first.config().to_dict(), second.config().to_dict()
        ignored = _IRRELEVANT_SETTINGS
    return {
        name: (first_settings.get(name), value)
        for name, value in second_settings.items()
        if name not in ignored and first_settings.get(name) != value
    }


def as_huggingface(architecture: Architecture, special_ids: Mapping[str, int]) -> HuggingFace:
    """Return the settings of a Hugging Face directory that computes the same function.

    Args:
        architecture: of either kind.
        special_ids: the tokenizer's special tokens, by their names in configurations.
    """
    if isinstance(architecture, HuggingFace):
        return architecture
    settings = json.loads(architecture.config().to_json_string())
    # Without a padding token: its row of the embedding would get no gradient in later training.
    settings |= {name: value for name, value in special_ids.items() if name != "pad_token_id"}
    settings.pop("use_cache", None)
    return HuggingFace(settings, dict(special_ids))
