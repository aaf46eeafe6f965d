"""Infer MiniMind's architecture from the names and shapes of weights, and check overrides."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence, Set
from typing import Any, Literal

from dpo_cli.errors import DpoError
from dpo_cli.models.convert import EMBEDDING, HEAD
from dpo_cli.models.minimind import NOT_IN_WEIGHTS, MiniMind, Shape
from dpo_cli.profile.text import show_value

_LAYER = re.compile(r"model\.layers\.([0-9]{1,9})\.")
_EXPERT = re.compile(r"model\.layers\.0\.mlp\.experts\.([0-9]{1,9})\.gate_proj\.weight")
_COUNTS = ("num_attention_heads", "num_key_value_heads", "num_experts_per_tok")
_MAX_COUNT, _MAX_FLOAT = 1 << 20, 1e12
_MAX_LISTED = 12


def infer_minimind(
    shapes: Mapping[str, Shape], overrides: Mapping[str, Any], source: str
) -> MiniMind:
    """Infer the architecture of a MiniMind state dict from its names and shapes.

    Args:
        shapes: shape of each weight under MiniMind's names; the tied head may be missing.
        overrides: the profile's [model] keys, None if not set. They decide the settings that
            weights do not contain, and must not contradict the others.
        source: the file, for error messages.

    Raises:
        DpoError: these are not MiniMind's weights; weights are missing, unexpected or of a wrong
            shape; or an override contradicts the weights. Every finding is listed.
    """
    architecture = _infer(shapes, overrides, source)
    check_overrides(architecture, overrides, source, _unsupported(architecture))
    _require_exact_shapes(architecture, shapes, source)
    return architecture


def infer_minimind_directory(
    shapes: Mapping[str, Shape],
    settings: Mapping[str, Any],
    overrides: Mapping[str, Any],
    source: str,
) -> MiniMind:
    """Infer the architecture of a directory that MiniMind published with a config.json.

    Args:
        settings: content of config.json, for the settings that weights do not contain.
        shapes, overrides, source: see `infer_minimind`.

    Raises:
        DpoError: see `infer_minimind`; or config.json asks for scaled rotary frequencies.
    """
    if settings.get("inference_rope_scaling"):
        raise DpoError(
            f"{source}: config.json sets inference_rope_scaling, but the weights were trained"
            " without it",
            "Set inference_rope_scaling to false in config.json; it is for longer texts only.",
        )
    from_config = {key: settings[key] for key in NOT_IN_WEIGHTS if settings.get(key) is not None}
    for key, value in from_config.items():
        if not _is_valid(key, value):
            raise DpoError(
                f"{source}: config.json sets {key} = {value!r:.40}", "Copy or download it again."
            )
    architecture = infer_minimind(shapes, {**overrides, **from_config}, source)
    check_overrides(architecture, overrides, source)
    return architecture


def check_overrides(
    architecture: object, overrides: Mapping[str, Any], source: str, unsupported: Sequence[str] = ()
) -> None:
    """Check that the profile's [model] keys agree with the weights.

    Args:
        architecture: of the weights; a setting that it lacks is not checked.
        overrides: the profile's [model] keys, None if not set.
        source: where the weights are, for error messages.
        unsupported: further findings to report in the same error.

    Raises:
        DpoError: a key differs, or `unsupported` is not empty; every finding is listed.
    """
    findings, statements = [], []
    for key, value in overrides.items():
        actual = getattr(architecture, key, None)
        if value is not None and actual is not None and actual != value:
            findings.append(f"model.{key} = {value} in the profile, {actual} in the weights")
            statements.append(f"model.{key} = {show_value(actual)}")
    if findings or unsupported:
        agree = f"; or set {', '.join(statements)}" if statements else ""
        raise DpoError(
            f"{source}: the profile contradicts the weights",
            "Remove the key, because shapes are read from the weights; or choose other weights"
            f"{agree}.",
            [*findings, *unsupported],
        )


def _is_valid(key: str, value: object) -> bool:
    """Return True if a setting of config.json has the type and range of its key."""
    if key == "norm_topk_prob":
        return isinstance(value, bool)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    if key in _COUNTS:
        return isinstance(value, int) and 0 < value < _MAX_COUNT
    return 0 < value < _MAX_FLOAT


def list_names(problem: str, names: Sequence[str]) -> list[str]:
    """Return one line for each of the first names, and one with the number of the others."""
    lines = [f"{problem}: {name}" for name in names[:_MAX_LISTED]]
    rest = len(names) - len(lines)
    return [*lines, f"{problem}: and {rest} more"] if rest else lines


def _infer(shapes: Mapping[str, Shape], overrides: Mapping[str, Any], source: str) -> MiniMind:
    layers = {int(match[1]) for name in shapes if (match := _LAYER.match(name))}
    query = shapes.get("model.layers.0.self_attn.q_proj.weight")
    key = shapes.get("model.layers.0.self_attn.k_proj.weight")
    embedding = shapes.get(EMBEDDING)
    matrices = (query, key, embedding)
    if not layers or any(shape is None or len(shape) != 2 for shape in matrices):
        first_names = ", ".join(list(shapes)[:3]) or "nothing"
        raise DpoError(
            f"{source}: these are not the weights of a MiniMind model (found {first_names} ...)",
            "Set model.weights to a state dict such as full_sft_512.pth.",
        )
    assert query is not None
    assert key is not None
    assert embedding is not None
    _refuse_gaps(layers, source)
    vocab_size, hidden_size = embedding
    num_experts = sum(1 for name in shapes if _EXPERT.fullmatch(name))
    gate = "mlp.experts.0.gate_proj.weight" if num_experts else "mlp.gate_proj.weight"
    gate_shape = shapes.get(f"model.layers.0.{gate}") or (0,)
    _refuse_more_than(len(layers) * max(1, num_experts), len(shapes), source)

    def or_default(key: str, default: Any) -> Any:
        value = overrides.get(key)
        return default if value is None else value

    # Only version 3 normalizes queries and keys per head, and the length of that norm is head_dim.
    head_norm = shapes.get("model.layers.0.self_attn.q_norm.weight")
    if head_norm is not None:
        version: Literal[2, 3] = 3
        if len(head_norm) != 1 or not head_norm[0]:
            raise DpoError(
                f"{source}: the norm of the heads has the shape {head_norm}",
                "Set model.weights to a state dict such as full_sft_512.pth.",
            )
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
                "Set model.num_attention_heads and model.num_key_value_heads; the weights of"
                " MiniMind version 2 do not contain them.",
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


def _refuse_gaps(layers: Set[int], source: str) -> None:
    """Refuse layer numbers with gaps: the list of missing weights could be as long as the number.

    Raises:
        DpoError: names the first missing layer.
    """
    if max(layers) < len(layers):
        return
    first = next(number for number in range(len(layers) + 1) if number not in layers)
    raise DpoError(
        f"{source}: not a complete MiniMind model: it has weights of layer {max(layers)}, but none"
        f" of layer {first}",
        "Check that the file is complete and written by the same version of the model.",
    )


def _refuse_more_than(expected: int, weights: int, source: str) -> None:
    """Refuse a file that has fewer weights than feed-forward blocks; each block has three weights.

    Raises:
        DpoError: there are more blocks; names both numbers.
    """
    if expected > weights + _MAX_LISTED:
        raise DpoError(
            f"{source}: not a complete MiniMind model: {expected} feed-forward blocks, {weights}"
            " weights",
            "Check that the file is complete and written by the same version of the model.",
        )


def _unsupported(architecture: MiniMind) -> list[str]:
    findings = []
    if architecture.use_moe:
        if architecture.num_experts_per_tok > architecture.num_experts:
            findings.append(
                f"model.num_experts_per_tok = {architecture.num_experts_per_tok},"
                f" {architecture.num_experts} experts in the weights"
            )
        # GraniteMoeShared takes the softmax over the chosen experts only, which is always
        # normalized.
        if architecture.version == 2 and not architecture.norm_topk_prob:
            findings.append(
                "model.norm_topk_prob = false: the expert weights of MiniMind version 2 are"
                " normalized; no other form is implemented"
            )
    return findings


def _require_exact_shapes(architecture: MiniMind, shapes: Mapping[str, Shape], source: str) -> None:
    expected = architecture.expected_shapes()
    missing = [name for name in expected if name not in shapes and name != HEAD]
    unexpected = [name for name in shapes if name not in expected]
    wrong = [
        f"{name}: {tuple(shape)}, {expected[name]} expected"
        for name, shape in shapes.items()
        if name in expected and tuple(shape) != expected[name]
    ]
    findings = [
        *list_names("missing", missing),
        *list_names("unexpected", unexpected),
        *list_names("wrong shape", wrong),
    ]
    if findings:
        raise DpoError(
            f"{source}: not a complete {architecture.description}",
            "Weights must be exactly those of a MiniMind model. Check that the file is complete"
            " and written by the same version of the model.",
            findings,
        )
