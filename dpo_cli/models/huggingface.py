"""Any causal language model that transformers computes, described by its own configuration."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import transformers
from torch import Tensor
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from dpo_cli.errors import DpoError, first_line
from dpo_cli.models.convert import StateDict
from dpo_cli.objective.aux_loss import AuxLossKind

_EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts")
_DEFAULT_DTYPE = "default"
"""Key of the most common dtype in `HuggingFace.dtypes`."""
_OLDER_ROPE_NAMES = ("rope_theta", "partial_rotary_factor")
"""Settings in `rope_parameters` that transformers 4 reads from the top level."""
_ATTENTION_DROPOUTS = ("attention_dropout", "attn_pdrop")
_ROUTER_IS_LINEAR = (
    *("granitemoe", "granitemoeshared", "mixtral", "olmoe", "qwen2_moe", "qwen3_moe"),
)
"""Model types whose routers are one matrix, so that `ResponseScorer` can compute their logits."""


@dataclass(frozen=True)
class HuggingFace:
    """Settings of a transformers model; an `Architecture`.

    Attributes:
        settings: content of config.json.
        generation: content of generation_config.json; empty if there is none.
        dtypes: if the weights have several dtypes, the most common one under "default", and the
            dtype of each weight that has another one; else empty.
    """

    settings: Mapping[str, Any]
    generation: Mapping[str, Any]
    dtypes: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Model type in transformers, for example "llama"."""
        return str(self.settings["model_type"])

    @property
    def class_name(self) -> str:
        """Name of the model's class in transformers, for example "LlamaForCausalLM"."""
        return str(MODEL_FOR_CAUSAL_LM_MAPPING[type(self._config)].__name__)

    @property
    def description(self) -> str:
        """One-line summary for the user."""
        heads = ""
        if self._integer("num_attention_heads"):
            heads = f" {self.num_attention_heads} heads / {self.num_key_value_heads} KV heads,"
        kind = "dense"
        if self.use_moe:
            kind = f"{self.num_experts} experts, top {self.num_experts_per_tok}"
        size = f"{self.hidden_size} x {self.num_hidden_layers}"
        return f"{self.class_name}, {size},{heads} {kind}"

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding; a tokenizer may have fewer entries."""
        return self._integer("vocab_size") or 0

    @property
    def hidden_size(self) -> int:
        """Width of the hidden states."""
        return self._integer("hidden_size") or 0

    @property
    def num_hidden_layers(self) -> int:
        """Number of decoder blocks."""
        return self._integer("num_hidden_layers") or 0

    @property
    def num_attention_heads(self) -> int:
        """Query heads per layer; 1 if the model has no attention."""
        return self._integer("num_attention_heads") or 1

    @property
    def num_key_value_heads(self) -> int:
        """Key and value heads per layer."""
        return self._integer("num_key_value_heads") or self.num_attention_heads

    @property
    def head_dim(self) -> int:
        """Width of an attention head."""
        return self._integer("head_dim") or self.hidden_size // self.num_attention_heads

    @property
    def intermediate_size(self) -> int:
        """Width of a feed-forward block, or of one expert; by default 4 * hidden_size."""
        expert_size = self._integer("moe_intermediate_size") if self.use_moe else None
        return expert_size or self._integer("intermediate_size") or 4 * self.hidden_size

    @property
    def num_experts(self) -> int:
        """Experts per layer; 0 if dense."""
        return next(filter(None, map(self._integer, _EXPERT_COUNTS)), 0)

    @property
    def num_experts_per_tok(self) -> int | None:
        """Experts per token; None if dense."""
        return self._integer("num_experts_per_tok") if self.use_moe else None

    @property
    def norm_topk_prob(self) -> bool | None:
        """True if the weights of a token's experts sum to 1; None without such a setting."""
        value = getattr(self._config, "norm_topk_prob", None)
        return value if isinstance(value, bool) else None

    @property
    def rope_theta(self) -> float | None:
        """Base of the rotary frequencies; None without rotary embeddings."""
        parameters = getattr(self._config, "rope_parameters", None)
        return parameters.get("rope_theta") if isinstance(parameters, dict) else None

    @property
    def rms_norm_eps(self) -> float | None:
        """Epsilon of the RMS norms; None for models with other norms."""
        value: float | None = getattr(self._config, "rms_norm_eps", None)
        return value

    @property
    def use_moe(self) -> bool:
        """True if the feed-forward blocks are mixtures of experts."""
        return self.num_experts > 1

    @property
    def ffn_blocks_per_token(self) -> int:
        """Feed-forward blocks per token and layer."""
        return self.num_experts_per_tok or 1

    @property
    def max_positions(self) -> int | None:
        """Longest sequence in tokens; None without a limit."""
        return self._integer("max_position_embeddings")

    @property
    def aux_loss_kind(self) -> AuxLossKind | None:
        """Definition of the aux_loss: Switch Transformer's; None for unknown kinds of routers."""
        return "batch" if self.name in _ROUTER_IS_LINEAR else None

    @property
    def default_router_aux_loss_coef(self) -> float:
        """Coefficient of the aux_loss: 0, so it is reported but not trained on by default."""
        return 0.0

    @property
    def has_constant_expert_weights(self) -> bool:
        """True if a token's only expert always has weight 1; see `MiniMind`."""
        return bool(self.norm_topk_prob) and self.num_experts_per_tok == 1

    @property
    def supports_packing(self) -> bool:
        """False: packing depends on the model's code, so it is tried."""
        return False

    @property
    def stop_ids(self) -> frozenset[int]:
        """Every `eos_token_id` of generation_config.json, else of config.json."""
        found = self.generation.get("eos_token_id")
        if found is None:
            found = getattr(self._config, "eos_token_id", None)
        ids = found if isinstance(found, list) else [found]
        return frozenset(id for id in ids if isinstance(id, int))

    @property
    def tokenizer_hint(self) -> str:
        """Sentence that helps the user to find the tokenizer of these weights."""
        return (
            "the tokenizer in the model's own directory is used unless the profile sets another one"
        )

    def file_name(self, prefix: str) -> str:
        """Return the name of the directory."""
        return prefix

    def file_dtype(self, source_dtype: str) -> str:
        """Return the dtype of the starting weights."""
        return source_dtype

    def own_dtypes(self, dtype: str) -> Mapping[str, str]:
        """Return the weights that have another dtype in the starting weights of `dtype`."""
        if dtype != self.dtypes.get(_DEFAULT_DTYPE):
            return {}
        return {name: own for name, own in self.dtypes.items() if name != _DEFAULT_DTYPE}

    def to_native_names(self, state: Mapping[str, Tensor]) -> StateDict:
        """Return the weights unchanged: the Hugging Face layout is the native one."""
        return dict(state)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for the plan; `architecture_of` reads them back."""
        values = {"config": dict(self.settings), "generation_config": dict(self.generation)}
        return values | ({"dtypes": dict(self.dtypes)} if self.dtypes else {})

    def config(self, dropout: float = 0.0) -> transformers.PreTrainedConfig:
        """Return the configuration with the profile's attention dropout and no other dropout.

        Raises:
            DpoError: the model has no attention dropout.
        """
        config = copy.deepcopy(self._config)
        for name, value in vars(config).items():
            if "drop" in name and isinstance(value, float | int):
                setattr(config, name, 0.0)
        if dropout:
            names = [name for name in _ATTENTION_DROPOUTS if hasattr(config, name)]
            if not names:
                raise DpoError(
                    f"model.dropout = {dropout}: {self.class_name} cannot drop attention weights",
                    "Remove model.dropout.",
                )
            setattr(config, names[0], dropout)
        # The padding token's row of the embedding gets no gradient, and many models use an ordinary
        # token, for example the end of a turn, as padding.
        config.pad_token_id = None
        config.use_cache = False
        return config

    def untied(self) -> HuggingFace:
        """Return the architecture with a head of its own, as config.json then says."""
        if not self._config.tie_word_embeddings:
            return self
        return replace(self, settings={**self.settings, "tie_word_embeddings": False})

    @cached_property
    def _config(self) -> transformers.PreTrainedConfig:
        return CONFIG_MAPPING[self.name].from_dict(copy.deepcopy(dict(self.settings)))

    def _integer(self, name: str) -> int | None:
        """Return an integer setting, or None if it is missing or a list with a value per layer."""
        value = getattr(self._config, name, None)
        return value if isinstance(value, int) and not isinstance(value, bool) else None


def with_dtypes(architecture: HuggingFace, dtypes: Mapping[str, str], default: str) -> HuggingFace:
    """Return the architecture of weights with these dtypes.

    Args:
        architecture: of the weights.
        dtypes: dtype of each weight by name.
        default: the most common dtype.
    """
    others = {name: dtype for name, dtype in dtypes.items() if dtype != default}
    return replace(architecture, dtypes={_DEFAULT_DTYPE: default, **others} if others else {})


def with_older_names(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Add the names under which transformers 4 reads settings, so that it computes the same model.

    transformers 4 ignores `rope_parameters` and takes a base of 10,000; for some models it also
    has another name for the number of experts.

    Args:
        settings: content of a config.json.
    """
    older: dict[str, Any] = {}
    rope = settings.get("rope_parameters")
    # Parameters by layer type are nested; no single older name has the same meaning.
    if isinstance(rope, Mapping) and "rope_theta" in rope:
        older = {name: rope[name] for name in _OLDER_ROPE_NAMES if name in rope}
        scaling = {name: value for name, value in rope.items() if name not in _OLDER_ROPE_NAMES}
        if scaling.get("rope_type", "default") != "default":
            older["rope_scaling"] = scaling
    attribute_map = CONFIG_MAPPING[settings["model_type"]].attribute_map
    for name in _EXPERT_COUNTS:
        if attribute_map.get(name) in settings:
            older[name] = settings[attribute_map[name]]
    return {**older, **settings}


def read_settings(
    settings: Mapping[str, Any], generation: Mapping[str, Any], source: str
) -> HuggingFace:
    """Check the content of a config.json and return the model it describes.

    Code that the configuration refers to (`auto_map`) is never run.

    Args:
        settings: content of config.json.
        generation: content of generation_config.json.
        source: the directory, for error messages.

    Raises:
        DpoError: the model is quantized, unknown to transformers, or not a text-only causal
            language model; or the settings are invalid.
    """
    model_type = settings.get("model_type")
    if "quantization_config" in settings:
        raise DpoError(
            f"{source}: quantized weights cannot be trained",
            "Use the model's weights in float32, float16 or bfloat16.",
        )
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        remote = "; code in the directory is never run" if "auto_map" in settings else ""
        raise DpoError(
            f"{source}: transformers {transformers.__version__} does not support model_type"
            f" {model_type!r:.80}{remote}",
            "Use a model that transformers supports, or a newer version of transformers.",
        )
    # Exports do not contain the code that `auto_map` refers to.
    own_settings = {name: value for name, value in settings.items() if name != "auto_map"}
    architecture = HuggingFace(own_settings, dict(generation))
    try:
        config = architecture.config()
        is_text = config.get_text_config() is config
        is_model = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING
    except Exception as error:  # invalid settings raise almost any exception
        raise DpoError(
            f"{source}: transformers cannot use this config.json ({first_line(error)})",
            "Copy or download the directory again.",
        ) from error
    if not is_model or not is_text:
        raise DpoError(
            f"{source}: {model_type} is not a text-only causal language model",
            "Use a model whose config.json names a ...ForCausalLM class.",
        )
    return architecture
