"""Architectures in GGUF: names and layout of the weights, and settings, of a transformers model.

llama.cpp computes each architecture with code of its own, which is written for the settings of the
published models. A setting that this code ignores is refused, because the file would load and
compute another function.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from dpo_cli.errors import DpoError
from dpo_cli.models.convert import StateDict
from dpo_cli.models.huggingface import HuggingFace

if TYPE_CHECKING:
    import gguf

_EXPERT = re.compile(r"(.*\.experts)\.(\d+)\.(.*)")
_FUSED = re.compile(r"model\.layers\.(\d+)\.(block_sparse_moe|shared_mlp)\.input_linear\.weight")
"""Weights of Granite's experts: gate projections above up projections."""
_HEADS = re.compile(r".*\.self_attn\.([qk])_proj\.(weight|bias)")
_ROPE_FACTORS = "rope_freqs.weight"
_CONVERTER = (
    "Write a Hugging Face directory with --format hf, and convert it with llama.cpp's own"
    " convert_hf_to_gguf.py."
)


@dataclass(frozen=True)
class _Kind:
    """Architecture of llama.cpp that computes a model type.

    Attributes:
        name: name in GGUF.
        interleaves: True if llama.cpp rotates neighboring dimensions of a head, (0, 1), (2, 3) ...;
            transformers rotates (0, d/2), (1, d/2 + 1) ..., so the rows of queries and keys move.
    """

    name: str
    interleaves: bool = False


_KINDS: Mapping[str, _Kind] = {
    "llama": _Kind("llama", interleaves=True),
    "mistral": _Kind("llama", interleaves=True),
    "mixtral": _Kind("llama", interleaves=True),
    "granite": _Kind("granite", interleaves=True),
    "granitemoe": _Kind("granitemoe", interleaves=True),
    "granitemoeshared": _Kind("granitemoe", interleaves=True),
    "qwen2": _Kind("qwen2"),
    "qwen3": _Kind("qwen3"),
    "qwen3_moe": _Kind("qwen3moe"),
}
"""Architectures by the model type in transformers."""


@dataclass(frozen=True)
class _Place:
    """Place of a weight, or of one half of it, in a GGUF file.

    Attributes:
        tensor: name of the tensor in the file.
        expert: index into the first dimension of the tensor; None for the whole tensor.
        heads: number of heads whose rows move; 0 if none do.
    """

    tensor: str
    expert: int | None = None
    heads: int = 0


class GgufArchitecture:
    """Names, layout and settings of a model in GGUF."""

    def __init__(self, architecture: HuggingFace) -> None:
        """Find the architecture of llama.cpp that computes this model.

        Raises:
            DpoError: there is none, or a setting of the model has no effect there.
        """
        import gguf

        kind = _KINDS.get(architecture.name)
        if kind is None:
            raise DpoError(
                f"--format gguf: dpo has no GGUF architecture for {architecture.name};"
                f" it writes {', '.join(_KINDS)}",
                _CONVERTER,
            )
        self._kind, self._model = kind, architecture
        self._config: Any = architecture.config()
        _require_supported(architecture, self._config)
        self.name = kind.name
        """Name of the architecture in GGUF."""
        number = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == kind.name)
        self._names = gguf.get_tensor_name_map(number, architecture.num_hidden_layers)

    def to_gguf(self, state: Mapping[str, Tensor]) -> StateDict:
        """Rename and rearrange weights from the Hugging Face layout to that of the file."""
        tensors: StateDict = {}
        experts: dict[str, dict[int, Tensor]] = {}
        for name, tensor in state.items():
            places = self._places(name)
            parts = [tensor] if len(places) == 1 else tensor.chunk(len(places), dim=-2)
            for place, part in zip(places, parts, strict=True):
                if place.heads:
                    part = _interleaved(part, place.heads)
                if place.expert is None:
                    tensors[place.tensor] = part
                else:
                    experts.setdefault(place.tensor, {})[place.expert] = part
        for name, by_index in experts.items():
            tensors[name] = torch.stack([by_index[index] for index in range(len(by_index))])
        factors = self._rope_factors()
        return tensors if factors is None else {**tensors, _ROPE_FACTORS: factors}

    def from_gguf(self, tensors: Mapping[str, Tensor], names: Mapping[str, Tensor]) -> StateDict:
        """Rename and rearrange weights of a file to the Hugging Face layout.

        Args:
            tensors: by their names in the file.
            names: any state dict in the Hugging Face layout, for its names.
        """
        state: StateDict = {}
        for name in names:
            parts = []
            for place in self._places(name):
                part = tensors[place.tensor]
                if place.expert is not None:
                    part = part[place.expert]
                parts.append(_separated(part, place.heads) if place.heads else part)
            state[name] = torch.cat(parts, dim=-2) if len(parts) > 1 else parts[0]
        return state

    def add_settings(self, writer: gguf.GGUFWriter) -> None:
        """Add the settings of the model to a file."""
        model, config = self._model, self._config
        writer.add_block_count(model.num_hidden_layers)
        writer.add_context_length(model.max_positions or 0)
        writer.add_embedding_length(model.hidden_size)
        writer.add_feed_forward_length(int(config.intermediate_size))
        writer.add_head_count(model.num_attention_heads)
        writer.add_head_count_kv(model.num_key_value_heads)
        writer.add_key_length(model.head_dim)
        writer.add_value_length(model.head_dim)
        writer.add_rope_dimension_count(model.head_dim)
        writer.add_rope_freq_base(float(model.rope_theta or 0))
        writer.add_layer_norm_rms_eps(float(model.rms_norm_eps or 0))
        writer.add_vocab_size(model.vocab_size)
        if model.use_moe:
            writer.add_expert_count(model.num_experts)
            writer.add_expert_used_count(int(model.num_experts_per_tok or 0))
        if model.name == "qwen3_moe":
            writer.add_expert_feed_forward_length(model.intermediate_size)
        if model.name == "granitemoeshared":
            writer.add_expert_shared_feed_forward_length(int(config.shared_intermediate_size))
        if self.name.startswith("granite"):
            writer.add_attention_scale(float(config.attention_multiplier))
            writer.add_embedding_scale(float(config.embedding_multiplier))
            writer.add_residual_scale(float(config.residual_multiplier))
            writer.add_logit_scale(float(config.logits_scaling))

    def _places(self, name: str) -> list[_Place]:
        """Return the place of a weight; two for gate and up projections in one matrix."""
        import gguf

        if fused := _FUSED.fullmatch(name):
            layer, block = fused.groups()
            kinds = (
                (gguf.MODEL_TENSOR.FFN_GATE_EXP, gguf.MODEL_TENSOR.FFN_UP_EXP)
                if block == "block_sparse_moe"
                else (gguf.MODEL_TENSOR.FFN_GATE_SHEXP, gguf.MODEL_TENSOR.FFN_UP_SHEXP)
            )
            return [_Place(f"{gguf.TENSOR_NAMES[kind].format(bid=layer)}.weight") for kind in kinds]
        expert = None
        if of_expert := _EXPERT.fullmatch(name):
            block, expert, rest = of_expert.groups()
            name = f"{block}.{rest}"
        heads = 0
        if self._kind.interleaves and (projection := _HEADS.fullmatch(name)):
            is_query = projection[1] == "q"
            heads = self._model.num_attention_heads if is_query else self._model.num_key_value_heads
        found = self._names.get_name(name, try_suffixes=(".weight", ".bias"))
        if found is None:
            raise DpoError(
                f"--format gguf: the architecture {self.name} has no place for {name}", _CONVERTER
            )
        return [_Place(found, None if expert is None else int(expert), heads)]

    def _rope_factors(self) -> Tensor | None:
        """Return the divisors of the rotary frequencies, (head_dim / 2,); None if all are 1."""
        if _rope_type(self._config) == "default":
            return None
        scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](self._config, torch.device("cpu"))
        exponents = torch.arange(0, self._model.head_dim, 2, dtype=torch.float64)
        base = float(self._model.rope_theta or 0)
        plain = 1.0 / base ** (exponents / self._model.head_dim)
        factors: Tensor = (plain / scaled.double()).float()
        return factors


def _interleaved(tensor: Tensor, heads: int) -> Tensor:
    """Move row i of a head to 2i, and row i + d/2 to 2i + 1."""
    halves = tensor.reshape(heads, 2, -1, *tensor.shape[1:])
    return halves.transpose(1, 2).reshape(tensor.shape)


def _separated(tensor: Tensor, heads: int) -> Tensor:
    """Undo `_interleaved`."""
    neighbors = tensor.reshape(heads, -1, 2, *tensor.shape[1:])
    return neighbors.transpose(1, 2).reshape(tensor.shape)


def _rope_type(config: Any) -> str:
    parameters = getattr(config, "rope_parameters", None) or {}
    return str(parameters.get("rope_type", "default"))


def _require_supported(architecture: HuggingFace, config: Any) -> None:
    """Refuse settings that llama.cpp's code for this model type does not have.

    Raises:
        DpoError: names the setting.
    """
    name = architecture.name
    interleaves = _KINDS[name].interleaves
    window = getattr(config, "sliding_window", None)
    if getattr(config, "use_sliding_window", True) is False:
        window = None
    positions = architecture.max_positions or 0
    parameters = getattr(config, "rope_parameters", None) or {}
    rope_types = ("default", "llama3") if interleaves else ("default",)
    rules: Mapping[str, tuple[bool, object]] = {
        "hidden_act": (config.hidden_act == "silu", config.hidden_act),
        "rope_type": (_rope_type(config) in rope_types, _rope_type(config)),
        "partial_rotary_factor": (
            parameters.get("partial_rotary_factor", 1.0) == 1.0,
            parameters.get("partial_rotary_factor"),
        ),
        "sliding_window": (window is None or window >= positions, window),
        # Qwen2 always has biases of queries, keys and values, and this setting does not exist.
        "attention_bias": (
            interleaves or not getattr(config, "attention_bias", False),
            getattr(config, "attention_bias", None),
        ),
        "norm_topk_prob": (
            not architecture.use_moe or architecture.norm_topk_prob is not False,
            architecture.norm_topk_prob,
        ),
        "decoder_sparse_step": (
            getattr(config, "decoder_sparse_step", 1) == 1,
            getattr(config, "decoder_sparse_step", None),
        ),
        "mlp_only_layers": (
            not getattr(config, "mlp_only_layers", None),
            getattr(config, "mlp_only_layers", None),
        ),
    }
    for setting, (is_supported, value) in rules.items():
        if not is_supported:
            raise DpoError(
                f"--format gguf: llama.cpp's {_KINDS[name].name} does not compute {name} with"
                f" {setting} = {value}",
                "Export with --format hf.",
            )
