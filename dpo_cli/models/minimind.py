"""MiniMind's architectures, read off the names and shapes of their weights.

MiniMind 2 (2025) computes Llama's function, MiniMind 3 (2026) Qwen3's; each is dense or a
mixture of experts. Names of weights here are MiniMind's own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import transformers

from dpo_cli.errors import DpoError
from dpo_cli.models.convert import EMBEDDING, HEAD, StateDict, to_minimind
from dpo_cli.objective.aux_loss import AuxLossKind

Shape = tuple[int, ...]

_LAYER = re.compile(r"model\.layers\.(\d+)\.")
_EXPERT = re.compile(r"model\.layers\.0\.mlp\.experts\.(\d+)\.gate_proj\.weight")
_LISTED = 12
UNTOLD = (
    *("num_attention_heads", "num_key_value_heads", "num_experts_per_tok", "norm_topk_prob"),
    *("rope_theta", "rms_norm_eps"),
)
"""What weights cannot tell, or not always."""


@dataclass(frozen=True)
class MiniMind:
    """Everything that decides the function a MiniMind checkpoint computes.

    It is an `Architecture`. The first block is read off the weights; the second cannot be, and
    holds the version's defaults or what the profile states.
    """

    version: Literal[2, 3]
    hidden_size: int
    num_hidden_layers: int
    vocab_size: int
    intermediate_size: int
    num_experts: int  # 0 where dense

    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    num_experts_per_tok: int
    norm_topk_prob: bool
    rope_theta: float
    rms_norm_eps: float

    @property
    def name(self) -> str:
        """What the plan calls it."""
        return f"minimind{self.version}"

    @property
    def use_moe(self) -> bool:
        """Whether the layers are mixtures of experts."""
        return self.num_experts > 0

    @property
    def aux_loss_kind(self) -> AuxLossKind:
        """Which definition of the balance loss the version trains its router with."""
        return "sequence" if self.version == 2 else "batch"

    @property
    def default_router_aux_loss_coef(self) -> float:
        """MiniMind version 2's script computes the balance loss and does not add it."""
        return 0.0 if self.version == 2 else 5e-4

    @property
    def is_known_to_pack(self) -> bool:
        """All four compute packed rows, and tests hold them to it."""
        return True

    @property
    def has_constant_weights(self) -> bool:
        """Whether a token's one expert has the weight 1, whatever the router says."""
        return self.use_moe and self.norm_topk_prob and self.num_experts_per_tok == 1

    @property
    def blocks_per_token(self) -> int:
        """Feed-forward blocks that a token goes through in a layer."""
        if not self.use_moe:
            return 1
        return self.num_experts_per_tok + (self.version == 2)

    @property
    def max_positions(self) -> int:
        """Tokens of a sequence there are positions for: both versions' table of rotations."""
        return 32768

    @property
    def tokenizer_hint(self) -> str:
        """Where the tokenizer is that the weights were trained with."""
        return (
            "MiniMind's two versions have tokenizers of one size and other tokens, and the"
            f" weights are of version {self.version}"
        )

    @property
    def description(self) -> str:
        """One line for people."""
        kind = "dense"
        if self.use_moe:
            shared = " + 1 shared" if self.version == 2 else ""
            kind = f"{self.num_experts} experts, top {self.num_experts_per_tok}{shared}"
        return (
            f"MiniMind version {self.version}, {self.hidden_size} x {self.num_hidden_layers},"
            f" {self.num_attention_heads} heads / {self.num_key_value_heads} KV heads, {kind}"
        )

    def file_name(self, prefix: str) -> str:
        """MiniMind's name for weights of this shape, such as rlhf_512.pth."""
        return f"{prefix}_{self.hidden_size}{'_moe' if self.use_moe else ''}.pth"

    def file_dtype(self, source_dtype: str) -> str:
        """MiniMind keeps its weights in half precision."""
        return "float16"

    def own_names(self, state: StateDict) -> StateDict:
        """The Hugging Face layout -> MiniMind's names."""
        return to_minimind(state, self)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for the plan."""
        return asdict(self)

    def config(self, dropout: float = 0.0) -> transformers.PreTrainedConfig:
        """Of the model in transformers that computes this function; see `Architecture`."""
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
            "pad_token_id": None,  # a padding token would get no gradient: MiniMind knows none
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
        """Name and shape of every weight, in MiniMind's order, both tied copies included."""
        return dict(self._expected())

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


def recognise(shapes: Mapping[str, Shape], stated: Mapping[str, Any], source: str) -> MiniMind:
    """The architecture of a state dict, from its names and shapes alone.

    Args:
        shapes: name -> shape, MiniMind's names; the tied head may be missing.
        stated: what the profile's [model] says, by key; None where it says nothing. It decides
            what weights cannot tell and may not contradict what they do.
        source: the file, for messages.

    Raises:
        DpoError: not MiniMind's weights, weights missing, unexpected or of another shape, or a
            stated key that contradicts them; everything found is listed.
    """
    architecture = _read_off(shapes, stated, source)
    refuse_contradictions(architecture, stated, source, _impossible(architecture))
    _refuse_misfits(architecture, shapes, source)
    return architecture


def recognise_folder(
    shapes: Mapping[str, Shape],
    settings: Mapping[str, Any],
    stated: Mapping[str, Any],
    source: str,
) -> MiniMind:
    """The same of weights that MiniMind published beside a config.json.

    Args:
        settings: its content, which tells what weights cannot.
        shapes, stated, source: see `recognise`.

    Raises:
        DpoError: also where the frequencies of positions are scaled.
    """
    if settings.get("inference_rope_scaling"):
        raise DpoError(
            f"{source}: config.json says inference_rope_scaling, which the weights were not trained"
            " with",
            "set it to false there: it is for long texts when the model is used",
        )
    told = {key: settings[key] for key in UNTOLD if settings.get(key) is not None}
    architecture = recognise(shapes, {**stated, **told}, source)
    refuse_contradictions(architecture, stated, source)
    return architecture


def refuse_contradictions(
    architecture: object, stated: Mapping[str, Any], source: str, impossible: Sequence[str] = ()
) -> None:
    """Refuse a profile that states another model than the one there is.

    Args:
        architecture: of the weights; what it does not know counts as agreeing.
        stated: what the profile's [model] says, by key.
        source: where the weights are, for messages.
        impossible: what is wrong beside that.

    Raises:
        DpoError: listing everything.
    """
    found = []
    for key, value in stated.items():
        actual = getattr(architecture, key, None)
        if value is not None and actual is not None and actual != value:
            found.append(f"model.{key} = {value} in the profile, {actual} in the weights")
    if found or impossible:
        raise DpoError(
            f"{source}: the profile contradicts the weights",
            "remove the key: shapes are read from the weights; or choose another checkpoint",
            [*found, *impossible],
        )


def _read_off(shapes: Mapping[str, Shape], stated: Mapping[str, Any], source: str) -> MiniMind:
    layers = {int(match[1]) for name in shapes if (match := _LAYER.match(name))}
    query = shapes.get("model.layers.0.self_attn.q_proj.weight")
    key = shapes.get("model.layers.0.self_attn.k_proj.weight")
    embedding = shapes.get(EMBEDDING)
    matrices = (query, key, embedding)
    if not layers or any(shape is None or len(shape) != 2 for shape in matrices):
        found = ", ".join(list(shapes)[:3]) or "nothing"
        raise DpoError(
            f"{source}: these are not the weights of a MiniMind model (found {found} ...)",
            "set model.weights to a state dict such as full_sft_512.pth",
        )
    assert query is not None
    assert key is not None
    assert embedding is not None
    vocab_size, hidden_size = embedding
    num_experts = sum(1 for name in shapes if _EXPERT.fullmatch(name))
    gate = "mlp.experts.0.gate_proj.weight" if num_experts else "mlp.gate_proj.weight"
    gate_shape = shapes.get(f"model.layers.0.{gate}", (0,))

    def or_default(key: str, default: Any) -> Any:
        value = stated.get(key)
        return default if value is None else value

    head_norm = shapes.get("model.layers.0.self_attn.q_norm.weight")
    if head_norm is not None:
        version: Literal[2, 3] = 3
        head_dim = head_norm[0]
        heads, key_value_heads = query[0] // head_dim, key[0] // head_dim
    else:
        version = 2
        heads = or_default("num_attention_heads", 8)
        key_value_heads = or_default("num_key_value_heads", 2)
        head_dim = query[0] // heads
        if query[0] != heads * head_dim or key[0] != key_value_heads * head_dim:
            raise DpoError(
                f"{source}: {heads} attention heads and {key_value_heads} key-value heads do not"
                f" fit projections of {query[0]} and {key[0]} rows",
                "state model.num_attention_heads and model.num_key_value_heads: MiniMind version"
                " 2's weights do not tell them",
            )
    return MiniMind(
        version=version,
        hidden_size=hidden_size,
        num_hidden_layers=max(layers) + 1,
        vocab_size=vocab_size,
        intermediate_size=gate_shape[0],
        num_experts=num_experts,
        num_attention_heads=heads,
        num_key_value_heads=key_value_heads,
        head_dim=head_dim,
        num_experts_per_tok=or_default("num_experts_per_tok", 2 if version == 2 else 1),
        norm_topk_prob=or_default("norm_topk_prob", True),
        rope_theta=float(or_default("rope_theta", 1e6)),
        rms_norm_eps=float(or_default("rms_norm_eps", 1e-5 if version == 2 else 1e-6)),
    )


def _impossible(architecture: MiniMind) -> list[str]:
    found = []
    if architecture.use_moe:
        if architecture.num_experts_per_tok > architecture.num_experts:
            found.append(
                f"model.num_experts_per_tok = {architecture.num_experts_per_tok},"
                f" {architecture.num_experts} experts in the weights"
            )
        if architecture.version == 2 and not architecture.norm_topk_prob:
            found.append(
                "model.norm_topk_prob = false: MiniMind version 2's experts are weighted after"
                " normalising, no other form is computed here"
            )
    return found


def _refuse_misfits(architecture: MiniMind, shapes: Mapping[str, Shape], source: str) -> None:
    expected = architecture.expected_shapes()
    missing = [name for name in expected if name not in shapes and name != HEAD]
    unexpected = [name for name in shapes if name not in expected]
    wrong = [
        f"{name}: {tuple(shape)}, {expected[name]} expected"
        for name, shape in shapes.items()
        if name in expected and tuple(shape) != expected[name]
    ]
    findings = [
        *listed("missing", missing),
        *listed("unexpected", unexpected),
        *listed("of another shape", wrong),
    ]
    if findings:
        raise DpoError(
            f"{source}: not a complete {architecture.description}",
            "a checkpoint must hold exactly MiniMind's weights; was it cut off, or written by"
            " another version of the model?",
            findings,
        )


def listed(what: str, names: Sequence[str]) -> list[str]:
    """A line for each of the first names, and how many more there are."""
    shown = [f"{what}: {name}" for name in names[:_LISTED]]
    rest = len(names) - len(shown)
    return [*shown, f"{what}: and {rest} more"] if rest else shown
