"""Any causal language model that transformers computes, as its own configuration describes it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from dpo_cli.errors import DpoError
from dpo_cli.models.convert import StateDict
from dpo_cli.objective.aux_loss import AuxLossKind

_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
_ATTENTION_DROPOUTS = ("attention_dropout", "attn_pdrop")
_BALANCED = ("granitemoe", "granitemoeshared", "mixtral", "olmoe", "qwen2_moe", "qwen3_moe")
"""Kinds of models whose routers are one matrix, of which `ResponseScorer` reads the logits."""


@dataclass(frozen=True)
class HuggingFace:
    """A model of transformers; it is an `Architecture`.

    Attributes:
        settings: the content of config.json.
        generation: that of generation_config.json; empty where there is none.
    """

    settings: Mapping[str, Any]
    generation: Mapping[str, Any]

    @property
    def name(self) -> str:
        """What transformers calls this kind of model, such as llama."""
        return str(self.settings["model_type"])

    @property
    def class_name(self) -> str:
        """The class in transformers that computes it."""
        return str(MODEL_FOR_CAUSAL_LM_MAPPING[type(self._config)].__name__)

    @property
    def description(self) -> str:
        """One line for people."""
        heads = ""
        if self._number("num_attention_heads"):
            heads = f" {self.num_attention_heads} heads / {self.num_key_value_heads} KV heads,"
        kind = "dense"
        if self.use_moe:
            kind = f"{self.num_experts} experts, top {self.num_experts_per_tok}"
        size = f"{self.hidden_size} x {self.num_hidden_layers}"
        return f"{self.class_name}, {size},{heads} {kind}"

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding; a tokenizer may have fewer entries."""
        return self._number("vocab_size") or 0

    @property
    def hidden_size(self) -> int:
        """Width of the model."""
        return self._number("hidden_size") or 0

    @property
    def num_hidden_layers(self) -> int:
        """Blocks."""
        return self._number("num_hidden_layers") or 0

    @property
    def num_attention_heads(self) -> int:
        """Query heads of a layer; 1 where there is no attention."""
        return self._number("num_attention_heads") or 1

    @property
    def num_key_value_heads(self) -> int:
        """Key and value heads of a layer."""
        return self._number("num_key_value_heads") or self.num_attention_heads

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        return self._number("head_dim") or self.hidden_size // self.num_attention_heads

    @property
    def intermediate_size(self) -> int:
        """Width of a feed-forward block; four times the model's where it is not stated."""
        own = self._number("moe_intermediate_size") if self.use_moe else None
        return own or self._number("intermediate_size") or 4 * self.hidden_size

    @property
    def num_experts(self) -> int:
        """Experts of a layer; 0 where it is dense."""
        return next(filter(None, map(self._number, _EXPERTS)), 0)

    @property
    def num_experts_per_tok(self) -> int | None:
        """Experts that a token is routed to; None where it is dense."""
        return self._number("num_experts_per_tok") if self.use_moe else None

    @property
    def norm_topk_prob(self) -> bool | None:
        """Whether a token's experts have weights that sum to one; None where nothing says so."""
        value = getattr(self._config, "norm_topk_prob", None)
        return value if isinstance(value, bool) else None

    @property
    def rope_theta(self) -> float | None:
        """Base of the rotary frequencies, where there is one."""
        parameters = getattr(self._config, "rope_parameters", None)
        return parameters.get("rope_theta") if isinstance(parameters, dict) else None

    @property
    def rms_norm_eps(self) -> float | None:
        """What keeps the norms from dividing by zero, where they are of that kind."""
        value: float | None = getattr(self._config, "rms_norm_eps", None)
        return value

    @property
    def use_moe(self) -> bool:
        """Whether layers are mixtures of experts."""
        return self.num_experts > 1

    @property
    def ffn_blocks_per_token(self) -> int:
        """Feed-forward blocks that a token goes through in a layer."""
        return self.num_experts_per_tok or 1

    @property
    def max_positions(self) -> int | None:
        """Tokens of a sequence there are positions for; None without a limit."""
        return self._number("max_position_embeddings")

    @property
    def aux_loss_kind(self) -> AuxLossKind | None:
        """Switch Transformer's, where the routers are of the usual kind."""
        return "batch" if self.name in _BALANCED else None

    @property
    def default_router_aux_loss_coef(self) -> float:
        """Computed, and not added, as elsewhere when such models are trained on preferences."""
        return 0.0

    @property
    def has_constant_expert_weights(self) -> bool:
        """Whether a token's one expert has the weight 1, whatever the router says."""
        return bool(self.norm_topk_prob) and self.num_experts_per_tok == 1

    @property
    def supports_packing(self) -> bool:
        """Nobody can read it off a name: it is tried."""
        return False

    @property
    def tokenizer_hint(self) -> str:
        """Where the tokenizer is that the weights were trained with."""
        return "it is in the model's own directory, and taken from there if nothing else is stated"

    def file_name(self, prefix: str) -> str:
        """The name of a directory."""
        return prefix

    def file_dtype(self, source_dtype: str) -> str:
        """The model's own."""
        return source_dtype

    def to_native_names(self, state: StateDict) -> StateDict:
        """The layout on disk is the makers' own."""
        return state

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for the plan."""
        return {"config": dict(self.settings), "generation_config": dict(self.generation)}

    def config(self, dropout: float = 0.0) -> transformers.PreTrainedConfig:
        """As stated, with the dropout that the profile wants, and no other.

        Raises:
            DpoError: the model cannot drop attention weights.
        """
        config = copy.deepcopy(self._config)
        for name, value in vars(config).items():
            if "drop" in name and isinstance(value, float | int):
                setattr(config, name, 0.0)
        if dropout:
            places = [name for name in _ATTENTION_DROPOUTS if hasattr(config, name)]
            if not places:
                raise DpoError(
                    f"model.dropout = {dropout}: {self.class_name} cannot drop attention weights",
                    "leave model.dropout out",
                )
            setattr(config, places[0], dropout)
        # Its row of the embedding would get no gradient, and often it is a token that means much.
        config.pad_token_id = None
        config.use_cache = False
        return config

    @cached_property
    def _config(self) -> transformers.PreTrainedConfig:
        return CONFIG_MAPPING[self.name].from_dict(copy.deepcopy(dict(self.settings)))

    def _number(self, name: str) -> int | None:
        """A setting that is a whole number; None where there is none, or one a layer."""
        value = getattr(self._config, name, None)
        return value if isinstance(value, int) and not isinstance(value, bool) else None


def read_settings(
    settings: Mapping[str, Any], generation: Mapping[str, Any], source: str
) -> HuggingFace:
    """The model that the content of a config.json describes; no code that it names is ever run.

    Args:
        settings: of config.json.
        generation: of generation_config.json.
        source: the directory, for messages.

    Raises:
        DpoError: it is quantised, of a kind that transformers does not know, or no language model
            and nothing else.
    """
    kind = settings.get("model_type")
    if "quantization_config" in settings:
        raise DpoError(
            f"{source}: quantised weights cannot be trained",
            "use the model's weights in float32, float16 or bfloat16",
        )
    if kind not in CONFIG_MAPPING:
        own = "; it has code of its own, which is never run" if "auto_map" in settings else ""
        raise DpoError(
            f"{source}: transformers {transformers.__version__} knows no model_type {kind!r}{own}",
            "use a model that transformers itself can compute, or a newer transformers",
        )
    # What is saved later has none of the code that it names.
    own_settings = {name: value for name, value in settings.items() if name != "auto_map"}
    architecture = HuggingFace(own_settings, dict(generation))
    try:
        config = architecture.config()
        is_text = config.get_text_config() is config
        is_model = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING
    except Exception as error:  # whatever a wrong setting makes the library raise
        reason = (str(error) or type(error).__name__).strip().splitlines()[0][:200]
        raise DpoError(
            f"{source}: config.json is not one that transformers can use ({reason})",
            "copy or download the directory again",
        ) from error
    if not is_model or not is_text:
        raise DpoError(
            f"{source}: {kind} is no causal language model of text alone",
            "use a model whose config.json names a ...ForCausalLM without other parts",
        )
    return architecture
