"""Settings of a LoRA adapter in the words of peft, without loading torch or peft."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dpo_cli.errors import DpoError
from dpo_cli.extras import install_extra
from dpo_cli.profile import folder
from dpo_cli.profile.lora import Lora
from dpo_cli.profile.model import Quantization
from dpo_cli.profile.text import show_value

ALL_LINEAR = "all-linear"
WEIGHTS = "adapter_model.safetensors"
_USED = (
    *("r", "lora_alpha", "lora_dropout", "target_modules", "use_dora", "use_rslora"),
    *("rank_pattern", "alpha_pattern", "layers_to_transform", "layers_pattern", "exclude_modules"),
    *("fan_in_fan_out", "init_lora_weights"),
)
"""Settings of peft's LoraConfig that decide what an adapter computes, and that are read."""
_DEFAULTS: Mapping[str, Any] = {
    "peft_type": "LORA",
    "bias": "none",
    "inference_mode": True,
    "task_type": "CAUSAL_LM",
}
_IGNORED = frozenset(
    {
        *_DEFAULTS,
        *("auto_mapping", "base_model_name_or_path", "revision", "peft_version"),
        *("megatron_core", "loftq_config", "eva_config", "corda_config", "lora_ga_config"),
        *("qalora_group_size", "runtime_config", "ensure_weight_tying"),
    }
)
"""Settings that change nothing in the function of an adapter, or have a value checked elsewhere."""


def require_peft(key: str) -> None:
    """Check that peft is installed.

    Args:
        key: setting that needs it, for the message.

    Raises:
        DpoError: it is not.
    """
    spec = find_spec("peft")
    if spec is None or spec.origin is None:
        raise DpoError(
            f"{key}: peft is not installed",
            install_extra("lora"),
        )


def require_quantizer(quantization: Quantization, lora: Lora) -> None:
    """Check that `[lora]` trains adapters beside quantized weights, and bitsandbytes is installed.

    Raises:
        DpoError: it does not, or is not.
    """
    if not lora.is_on:
        raise DpoError(
            "quantized weights are frozen, and only adapters beside them can be trained",
            "Set lora.rank, or remove model.quantization.",
        )
    if quantization == "int8" and lora.use_dora:
        raise DpoError(
            "lora.use_dora cannot measure the rows of int8 weights",
            'Set model.quantization = "nf4", or remove lora.use_dora.',
        )
    if find_spec("bitsandbytes") is None:
        raise DpoError("bitsandbytes is not installed", install_extra("quant"))


def adapter_settings(lora: Lora) -> dict[str, Any]:
    """Return the settings of a new adapter, as peft's adapter_config.json has them."""
    assert lora.rank is not None
    return {
        "r": lora.rank,
        "lora_alpha": lora.alpha or 2 * lora.rank,
        "lora_dropout": lora.dropout,
        "target_modules": lora.target_modules,
        "use_dora": lora.use_dora,
        "use_rslora": lora.use_rslora,
        "init_lora_weights": True if lora.init_lora_weights == "kaiming" else "gaussian",
    }


def to_file(settings: Mapping[str, Any], base: str | None) -> dict[str, Any]:
    """Return the content of an adapter_config.json.

    Args:
        settings: of the adapter.
        base: name of the base model on the Hub; None if it is not there.
    """
    return {**_DEFAULTS, "base_model_name_or_path": base, **settings}


def read_settings(directory: Path) -> dict[str, Any]:
    """Read the settings of an adapter that `dpo` can train, merge and export.

    Raises:
        DpoError: the directory has no such adapter.
    """
    if not folder.is_adapter(directory):
        raise DpoError(
            f"{directory}: no adapter: it has no {folder.ADAPTER}",
            "Set model.adapter to a directory that peft wrote.",
        )
    settings = folder.read_json(directory / folder.ADAPTER)
    kind = settings.get("peft_type")
    if kind != "LORA":
        raise DpoError(
            f"{directory}: an adapter of the kind {str(kind)[:40]}, not LORA",
            folder.how_to_merge(directory),
        )
    others = {**settings, "bias": None if settings.get("bias") == "none" else settings.get("bias")}
    extra = sorted(
        name
        for name, value in others.items()
        if value and name not in _USED and (name not in _IGNORED or name == "bias")
    )
    if extra:
        raise DpoError(
            f"{directory}: an adapter with {', '.join(extra)}, which dpo does not compute",
            folder.how_to_merge(directory),
        )
    if not isinstance(settings.get("r"), int) or settings["r"] < 1:
        raise DpoError(
            f"{directory}: an adapter of rank {settings.get('r')!r:.40}", "Copy it again."
        )
    if not (directory / WEIGHTS).is_file():
        raise DpoError(f"{directory} has no {WEIGHTS}", "Copy it again, or save it as safetensors.")
    return {name: settings[name] for name in _USED if settings.get(name) is not None}


def differences(lora: Lora, settings: Mapping[str, Any]) -> list[str]:
    """Return the keys to set in `[lora]` so that it continues an adapter; dropout may differ.

    Args:
        lora: the table.
        settings: of the adapter, from `read_settings`.
    """
    found = settings["target_modules"]
    targets = found if isinstance(found, str) else sorted(found)
    wanted: dict[str, tuple[Any, Any]] = {
        "rank": (lora.rank, settings["r"]),
        "alpha": (lora.alpha or 2 * (lora.rank or 0), settings.get("lora_alpha", 8)),
        "use_dora": (lora.use_dora, bool(settings.get("use_dora"))),
        "use_rslora": (lora.use_rslora, bool(settings.get("use_rslora"))),
    }
    if lora.target_modules != ALL_LINEAR:
        own = lora.target_modules
        wanted["target_modules"] = (own if isinstance(own, str) else sorted(own), targets)
    return [
        f"lora.{key} = {show_value(value)}" for key, (own, value) in wanted.items() if own != value
    ]
