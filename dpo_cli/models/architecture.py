"""What the rest of the house has to know of a model: all that the two kinds have in common.

MiniMind's architectures are read off the names and shapes of weights (`minimind`), any other off
transformers' own configuration (`huggingface`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Protocol

import transformers

from dpo_cli.models.convert import StateDict
from dpo_cli.models.huggingface import HuggingFace
from dpo_cli.models.minimind import MiniMind
from dpo_cli.objective.balance import BalanceKind


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
    def blocks_per_token(self) -> int:
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
    def balance_kind(self) -> BalanceKind | None:
        """The balance loss its router is trained with; None where none is known."""
        ...

    @property
    def default_router_aux_loss_coef(self) -> float:
        """What of it is added to the loss, if the profile does not say."""
        ...

    @property
    def has_constant_weights(self) -> bool:
        """Whether nothing but the balance loss can teach a router."""
        ...

    @property
    def is_known_to_pack(self) -> bool:
        """Whether packed rows need no trial; see `dpo_cli.models.support`."""
        ...

    @property
    def tokenizer_hint(self) -> str:
        """Where the tokenizer is that the weights were trained with."""
        ...

    def file_name(self, prefix: str) -> str:
        """Of the weights: a file, or a directory."""
        ...

    def file_dtype(self, born: str) -> str:
        """The precision that weights of this kind are kept in; `born` is the checkpoint's."""
        ...

    def own_names(self, state: StateDict) -> StateDict:
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


def as_directory(architecture: Architecture, special_ids: Mapping[str, int]) -> HuggingFace:
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
