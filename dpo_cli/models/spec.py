"""What the rest of the house has to know of a model: all that the two kinds have in common.

MiniMind's architectures are read off the names and shapes of weights (`minimind`), any other off
transformers' own configuration (`huggingface`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal, Protocol

import transformers

from dpo_cli.errors import DpoError
from dpo_cli.models.convert import StateDict
from dpo_cli.models.huggingface import HuggingFace
from dpo_cli.models.minimind import MiniMind
from dpo_cli.objective.aux_loss import AuxLossKind

_VERSIONS: Mapping[str, Literal[2, 3]] = {
    "llama": 2,
    "granitemoeshared": 2,
    "qwen3": 3,
    "qwen3_moe": 3,
}
"""What computes the function of which of MiniMind's versions."""
_WITHOUT_EFFECT = (
    *("architectures", "bos_token_id", "eos_token_id", "pad_token_id", "use_cache", "dtype"),
    *("transformers_version", "_name_or_path", "initializer_range", "max_position_embeddings"),
    *("router_aux_loss_coef", "output_router_logits", "max_window_layers", "pretraining_tp"),
)
"""Settings that do not decide the function of a model's weights."""


class Architecture(Protocol):
    """Everything that decides the function a checkpoint computes, and how its weights are kept."""

    @property
    def name(self) -> str:
        """What the plan calls it: minimind2, llama."""
        ...

    @property
    def description(self) -> str:
        """One line for people."""
        ...

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding; a tokenizer may have fewer entries."""
        ...

    @property
    def hidden_size(self) -> int:
        """Width of the model."""
        ...

    @property
    def num_hidden_layers(self) -> int:
        """Blocks."""
        ...

    @property
    def num_attention_heads(self) -> int:
        """Query heads of a layer."""
        ...

    @property
    def num_key_value_heads(self) -> int:
        """Key and value heads of a layer."""
        ...

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        ...

    @property
    def intermediate_size(self) -> int:
        """Width of a feed-forward block: of one expert, where there are any."""
        ...

    @property
    def ffn_blocks_per_token(self) -> int:
        """Feed-forward blocks that a token goes through in a layer."""
        ...

    @property
    def max_positions(self) -> int | None:
        """Tokens of a sequence there are positions for; None without a limit."""
        ...

    @property
    def use_moe(self) -> bool:
        """Whether layers are mixtures of experts."""
        ...

    @property
    def aux_loss_kind(self) -> AuxLossKind | None:
        """The balance loss its router is trained with; None where none is known."""
        ...

    @property
    def default_router_aux_loss_coef(self) -> float:
        """What of it is added to the loss, if the profile does not say."""
        ...

    @property
    def has_constant_expert_weights(self) -> bool:
        """Whether nothing but the balance loss can teach a router."""
        ...

    @property
    def supports_packing(self) -> bool:
        """Whether packed rows need no trial; see `dpo_cli.models.support`."""
        ...

    @property
    def tokenizer_hint(self) -> str:
        """Where the tokenizer is that the weights were trained with."""
        ...

    def file_name(self, prefix: str) -> str:
        """Of the weights: a file, or a directory."""
        ...

    def file_dtype(self, source_dtype: str) -> str:
        """The precision that weights of this kind are kept in; `born` is the checkpoint's."""
        ...

    def to_native_names(self, state: StateDict) -> StateDict:
        """The Hugging Face layout -> the names that the makers of the model know."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for the plan; `architecture_of` takes them back."""
        ...

    def config(self, dropout: float = 0.0) -> transformers.PreTrainedConfig:
        """Of the model in transformers that computes this function.

        Args:
            dropout: probability of dropping an attention weight in training.
        """
        ...


def architecture_of(shape: Mapping[str, Any]) -> Architecture:
    """The architecture that `to_dict` wrote down."""
    if "config" in shape:
        return HuggingFace(shape["config"], shape["generation_config"])
    return MiniMind(**shape)


def as_minimind(architecture: Architecture, source: str) -> MiniMind:
    """The model of MiniMind's that computes the same function.

    Args:
        architecture: of either kind.
        source: where it is from, for messages.

    Raises:
        DpoError: there is none; what differs is listed.
    """
    if isinstance(architecture, MiniMind):
        return architecture
    version = _VERSIONS.get(architecture.name)
    if version is None:
        raise DpoError(
            f"{source}: MiniMind has no model that computes {architecture.name}",
            f"it has those of {', '.join(_VERSIONS)}",
        )
    assert isinstance(architecture, HuggingFace)
    found = MiniMind(
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
    if different := differences(architecture, found):
        raise DpoError(
            f"{source}: MiniMind's own models compute another function",
            "train it as it is: a Hugging Face directory can be model.weights",
            [f"{name} = {its}, and {own} in MiniMind's" for name, (its, own) in different.items()],
        )
    return found


def differences(first: Architecture, second: Architecture) -> dict[str, tuple[Any, Any]]:
    """The settings that decide the function of the second, where the first has others."""
    if isinstance(first, MiniMind) and isinstance(second, MiniMind):
        own = second.to_dict()
        return {name: (its, own[name]) for name, its in first.to_dict().items() if its != own[name]}
    its, others = first.config().to_dict(), second.config().to_dict()
    return {
        name: (its.get(name), value)
        for name, value in others.items()
        if name not in _WITHOUT_EFFECT and its.get(name) != value
    }


def as_huggingface(architecture: Architecture, special_ids: Mapping[str, int]) -> HuggingFace:
    """The same function, as a Hugging Face directory states it.

    Args:
        architecture: of either kind.
        special_ids: the tokenizer's, by the names that configurations have for them.
    """
    if isinstance(architecture, HuggingFace):
        return architecture
    settings = json.loads(architecture.config().to_json_string())
    settings |= {name: its for name, its in special_ids.items() if name != "pad_token_id"}
    settings.pop("use_cache", None)
    return HuggingFace(settings, dict(special_ids))
