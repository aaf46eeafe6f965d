"""MiniMind's architectures: version 2 and version 3, each dense or a mixture of experts.

MiniMind version 2 (2025) computes the function of Llama (with experts: GraniteMoeShared), MiniMind
version 3 (2026) that of Qwen3 (Qwen3Moe). So no model code is needed here, only the mapping to a
transformers configuration and the names and shapes of the weights, which are MiniMind's own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import transformers
from torch import Tensor

from dpo_cli.models import convert
from dpo_cli.models.convert import EMBEDDING, HEAD, StateDict
from dpo_cli.objective.aux_loss import AuxLossKind

Shape = tuple[int, ...]

NOT_IN_WEIGHTS = (
    *("num_attention_heads", "num_key_value_heads", "num_experts_per_tok", "norm_topk_prob"),
    *("rope_theta", "rms_norm_eps"),
)
"""Settings that cannot be inferred from the shapes of all weights."""


@dataclass(frozen=True)
class MiniMind:
    """Settings that fully determine the function of a MiniMind model; an `Architecture`.

    The fields of the first block are inferred from the shapes of the weights. Those of the second
    block are not in every weights file; they are the version's defaults unless the profile
    overrides them.
    """

    version: Literal[2, 3]
    hidden_size: int
    num_hidden_layers: int
    vocab_size: int
    intermediate_size: int
    num_experts: int  # routed experts per layer; 0 if dense

    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    num_experts_per_tok: int
    norm_topk_prob: bool
    rope_theta: float
    rms_norm_eps: float

    @property
    def name(self) -> str:
        """Name of the architecture in the plan."""
        return f"minimind{self.version}"

    @property
    def use_moe(self) -> bool:
        """True if the feed-forward blocks are mixtures of experts."""
        return self.num_experts > 0

    @property
    def aux_loss_kind(self) -> AuxLossKind:
        """Definition of the aux_loss with which this version trains its router."""
        return "sequence" if self.version == 2 else "batch"

    @property
    def default_router_aux_loss_coef(self) -> float:
        """Coefficient of the aux_loss; 0 for version 2, whose script computes it but drops it."""
        return 0.0 if self.version == 2 else 5e-4

    @property
    def supports_packing(self) -> bool:
        """True: tests prove that all four variants compute packed rows correctly."""
        return True

    @property
    def has_constant_expert_weights(self) -> bool:
        """True if a token's only expert always has weight 1.

        Normalizing over one expert gives 1 whatever the router's logit is, so the preference loss
        sends the router no gradient.
        """
        return self.use_moe and self.norm_topk_prob and self.num_experts_per_tok == 1

    @property
    def ffn_blocks_per_token(self) -> int:
        """Feed-forward blocks per token and layer, the shared expert of version 2 included."""
        if not self.use_moe:
            return 1
        return self.num_experts_per_tok + (self.version == 2)

    @property
    def max_positions(self) -> int:
        """Longest sequence in tokens: the length of both versions' rotary table."""
        return 32768

    @property
    def stop_ids(self) -> frozenset[int]:
        """Empty: a weights file has no configuration, so only the tokenizer has an end token."""
        return frozenset()

    @property
    def tokenizer_hint(self) -> str:
        """Sentence that helps the user to find the tokenizer of these weights."""
        return (
            "the tokenizers of MiniMind's two versions have the same size but different tokens; the"
            f" weights are of version {self.version}"
        )

    @property
    def description(self) -> str:
        """One-line summary for the user."""
        kind = "dense"
        if self.use_moe:
            shared = " + 1 shared" if self.version == 2 else ""
            kind = f"{self.num_experts} experts, top {self.num_experts_per_tok}{shared}"
        return (
            f"MiniMind version {self.version}, {self.hidden_size} x {self.num_hidden_layers},"
            f" {self.num_attention_heads} heads / {self.num_key_value_heads} KV heads, {kind}"
        )

    def file_name(self, prefix: str) -> str:
        """Return MiniMind's file name for weights of this shape, for example rlhf_512.pth."""
        return f"{prefix}_{self.hidden_size}{'_moe' if self.use_moe else ''}.pth"

    def file_dtype(self, source_dtype: str) -> str:
        """Return "float16", the dtype of MiniMind's own files."""
        return "float16"

    def own_dtypes(self, dtype: str) -> Mapping[str, str]:
        """Return no weight: all weights of a MiniMind file have one dtype."""
        return {}

    def to_hf_names(self, state: Mapping[str, Tensor]) -> StateDict:
        """Rename weights from MiniMind's names to the Hugging Face layout."""
        return convert.to_hf(
            state, layers=self.num_hidden_layers, stacked_experts=self._stacked_experts
        )

    def to_native_names(self, state: Mapping[str, Tensor]) -> StateDict:
        """Rename weights from the Hugging Face layout to MiniMind's names, tied copies included."""
        return convert.to_minimind(
            state,
            self.expected_shapes(),
            layers=self.num_hidden_layers,
            stacked_experts=self._stacked_experts,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for the plan; `architecture_of` reads them back."""
        return asdict(self)

    def config(self, dropout: float = 0.0) -> transformers.PreTrainedConfig:
        """Return the configuration of the equivalent transformers model; see `Architecture`."""
        common: dict[str, Any] = {
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": self.num_key_value_heads,
            "head_dim": self.head_dim,
            "max_position_embeddings": self.max_positions,
            "rms_norm_eps": self.rms_norm_eps,
            "rope_parameters": {"rope_type": "default", "rope_theta": self.rope_theta},
            "attention_dropout": dropout,
            "attention_bias": False,
            "hidden_act": "silu",
            "tie_word_embeddings": True,
            "bos_token_id": 1,
            "eos_token_id": 2,
            # With a padding token set, its row of the embedding would get no gradient. MiniMind
            # has no padding token.
            "pad_token_id": None,
            "use_cache": False,
        }
        if not self.use_moe:
            if self.version == 2:
                return transformers.LlamaConfig(**common, mlp_bias=False)
            return transformers.Qwen3Config(**common, use_sliding_window=False)
        common["num_experts_per_tok"] = self.num_experts_per_tok
        if self.version == 2:
            return transformers.GraniteMoeSharedConfig(
                **common,
                num_local_experts=self.num_experts,
                shared_intermediate_size=self.intermediate_size,
                embedding_multiplier=1.0,
                residual_multiplier=1.0,
                logits_scaling=1.0,
                attention_multiplier=self.head_dim**-0.5,
            )
        return transformers.Qwen3MoeConfig(
            **common,
            num_experts=self.num_experts,
            moe_intermediate_size=self.intermediate_size,
            norm_topk_prob=self.norm_topk_prob,
            decoder_sparse_step=1,
            mlp_only_layers=[],
            use_sliding_window=False,
        )

    def expected_shapes(self) -> dict[str, Shape]:
        """Return the shape of every weight by name, in MiniMind's order, tied copies included."""
        return dict(self._expected())

    @property
    def _stacked_experts(self) -> int:
        return self.num_experts if self.version == 2 else 0

    def _expected(self) -> Iterator[tuple[str, Shape]]:
        hidden, inner = self.hidden_size, self.intermediate_size
        queries = self.num_attention_heads * self.head_dim
        keys = self.num_key_value_heads * self.head_dim
        feed_forward = {"gate_proj": (inner, hidden), "down_proj": (hidden, inner)}
        feed_forward["up_proj"] = (inner, hidden)
        yield EMBEDDING, (self.vocab_size, hidden)
        for layer in range(self.num_hidden_layers):
            prefix = f"model.layers.{layer}."
            yield prefix + "self_attn.q_proj.weight", (queries, hidden)
            yield prefix + "self_attn.k_proj.weight", (keys, hidden)
            yield prefix + "self_attn.v_proj.weight", (keys, hidden)
            yield prefix + "self_attn.o_proj.weight", (hidden, queries)
            if self.version == 3:
                yield prefix + "self_attn.q_norm.weight", (self.head_dim,)
                yield prefix + "self_attn.k_norm.weight", (self.head_dim,)
            yield prefix + "input_layernorm.weight", (hidden,)
            yield prefix + "post_attention_layernorm.weight", (hidden,)
            experts = [f"mlp.experts.{expert}." for expert in range(self.num_experts)]
            router = ("mlp.gate.weight", (self.num_experts, hidden))
            # The order is that of MiniMind's state dicts: version 3 defines the router before its
            # experts, version 2 after them.
            if self.use_moe and self.version == 3:
                yield prefix + router[0], router[1]
            for block in experts or ["mlp."]:
                for name, shape in feed_forward.items():
                    yield f"{prefix}{block}{name}.weight", shape
            if self.use_moe and self.version == 2:
                yield prefix + router[0], router[1]
                for name, shape in feed_forward.items():
                    yield f"{prefix}mlp.shared_experts.0.{name}.weight", shape
        yield "model.norm.weight", (hidden,)
        yield HEAD, (self.vocab_size, hidden)
