"""Rules for the settings of adapters, whose names most tools share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from dpo_cli.profile.foreign.rules import (
    Context,
    NoCounterpartError,
    Rule,
    items,
    number,
    only,
    switch,
    text,
    whole,
)

_RANK = "lora.rank"
_TARGETS = "lora.target_modules"
_RANKS = ("lora_r", "lora_rank", "peft_config.r")
_METHODS = ("finetuning_type", "adapter", "tuner_type", "train_type", "sft_type")
_SWITCHES = ("use_peft", "use_lora")
_QUANTIZED = ("load_in_4bit", "quantization_bit")
_LORA = ("lora", "qlora")
_QUANTIZATION = "model.quantization"
_BITS: Mapping[str, str] = {"4": "nf4", "8": "int8"}


def is_on(context: Context) -> bool:
    """Return True if the settings train an adapter."""
    values = context.values
    if any(str(values.get(name, "")).lower() in _LORA for name in _METHODS):
        return True
    if any(str(values.get(name, "")).lower() in ("true", "1") for name in _SWITCHES):
        return True
    return any(name.startswith("peft_config.") for name in values)


def _rank(context: Context, default: int) -> Mapping[str, Any]:
    """Return the default of lora.rank, unless a setting of its own sets it."""
    return {} if context.values.keys() & {*_RANKS} else {_RANK: default}


def method(default_rank: int, *full: str) -> Rule:
    """Set lora.rank if the value is a kind of LoRA, nothing if it is one of `full`."""

    def convert(value: Any, context: Context) -> Mapping[str, Any]:
        name = str(value).lower()
        if name in full:
            return {}
        if name not in _LORA:
            raise NoCounterpartError(
                "there are LoRA adapters in [lora], or all weights are trained"
            )
        if name == "qlora" and not context.values.keys() & {*_QUANTIZED}:
            context.differences.append(
                f'{name}: the weights of the model stay in float32; set {_QUANTIZATION} = "nf4"'
            )
        return _rank(context, default_rank)

    return Rule((_RANK,), convert, is_part=True)


def switched(default_rank: int) -> Rule:
    """Set lora.rank if the value is true."""

    def convert(value: Any, context: Context) -> Mapping[str, Any]:
        if not switch(value):
            return {}
        return _rank(context, default_rank)

    return Rule((_RANK,), convert, is_part=True)


def _quantized(bits: str, context: Context) -> Mapping[str, Any]:
    """Quantize the weights below an adapter to 4 or 8 bits."""
    if bits not in _BITS:
        raise NoCounterpartError("the weights below an adapter have 4, 8 or 32 bits")
    if not is_on(context):
        raise NoCounterpartError("without an adapter, float32 weights are trained")
    kind = str(context.values.get("bnb_4bit_quant_type", "nf4")).lower()
    if bits == "4" and kind != "nf4":
        context.differences.append(f"the 4 bits are those of nf4, not of {kind[:20]}")
    if bits == "8":
        context.differences.append("only weights have 8 bits; activations are not rounded")
    return {_QUANTIZATION: _BITS[bits]}


def _switched_bits(bits: str) -> Rule:
    return Rule(
        (_QUANTIZATION,),
        lambda value, context: _quantized(bits, context) if switch(value) else {},
    )


def _detail(key: str, read: Callable[[Any], Any]) -> Rule:
    """Set a key of [lora] if an adapter is trained."""
    return Rule((key,), lambda value, context: {key: read(value)} if is_on(context) else {})


def _dropout(name: str) -> Rule:
    """Set lora.dropout, unless the trainer sets every dropout to 0, as TRL's does by default."""

    def convert(value: Any, context: Context) -> Mapping[str, Any]:
        share = number(value)
        if not is_on(context):
            return {}
        if share and switch(context.values.get("disable_dropout", True)):
            context.without_effect.append(
                f"{name} = {share} (the tool trains with 0, unless disable_dropout is false)"
            )
            return {"lora.dropout": 0.0}
        return {"lora.dropout": share}

    return Rule(("lora.dropout",), convert)


def _targets(value: Any) -> str | list[str]:
    names = [text(each) for each in items(value)]
    return "all-linear" if names in (["all"], ["all-linear"]) else names


def _init(value: Any) -> str:
    name = str(value).lower()
    if name not in ("true", "kaiming", "gaussian"):
        raise NoCounterpartError(
            "other first values change the weights of the model, and the policy would not begin as"
            " its reference"
        )
    return "gaussian" if name == "gaussian" else "kaiming"


def _start(value: Any, context: Context) -> Mapping[str, Any]:
    """Begin with an adapter: trained on as the tools do, or merged below a new one."""
    names = [text(each) for each in items(value)]
    if len(names) != 1:
        raise NoCounterpartError("merge all adapters but one first; model.adapter is one")
    is_new = str(context.values.get("create_new_adapter", "")).lower() == "true"
    return {
        "model.adapter": context.path(names[0]),
        **({} if is_new else {"lora.continue_adapter": True}),
    }


_START = Rule(("model.adapter", "lora.continue_adapter"), _start)
ADAPTERS: Mapping[str, Rule] = {
    "use_peft": switched(16),
    **{name: _detail(_RANK, whole) for name in _RANKS},
    **{name: _detail("lora.alpha", whole) for name in ("lora_alpha", "peft_config.lora_alpha")},
    **{name: _dropout(name) for name in ("lora_dropout", "peft_config.lora_dropout")},
    **{
        name: _detail(_TARGETS, _targets)
        for name in (
            *("lora_target_modules", "lora_target", "target_modules"),
            "peft_config.target_modules",
        )
    },
    "lora_target_linear": Rule(
        (_TARGETS,),
        lambda value, context: {_TARGETS: "all-linear"} if is_on(context) and switch(value) else {},
    ),
    **{
        name: _detail("lora.use_dora", switch)
        for name in ("use_dora", "peft_use_dora", "peft_config.use_dora")
    },
    **{
        name: _detail("lora.use_rslora", switch)
        for name in ("use_rslora", "peft_use_rslora", "peft_config.use_rslora")
    },
    **{
        name: _detail("lora.init_lora_weights", _init)
        for name in ("init_lora_weights", "init_weights", "peft_config.init_lora_weights")
    },
    "load_in_4bit": _switched_bits("4"),
    "load_in_8bit": _switched_bits("8"),
    "quantization_bit": Rule(
        (_QUANTIZATION,),
        lambda value, context: {} if value is None else _quantized(str(whole(value)), context),
    ),
    "quantization_method": only("bitsandbytes quantizes the weights", "bnb", "bitsandbytes"),
    "bnb_4bit_quant_type": Rule((_QUANTIZATION,), lambda value, context: {}, is_part=True),
    **{
        name: only("the scales of nf4 are quantized, too", True)
        for name in ("use_bnb_nested_quant", "double_quantization", "bnb_4bit_use_double_quant")
    },
    "lora_bias": only("an adapter has no bias", "none", False),
    "peft_config.bias": only("an adapter has no bias", "none", False),
    **dict.fromkeys(("lora_model_dir", "adapter_name_or_path", "adapters"), _START),
}
"""Settings of adapters by name, whatever the tool."""
KEPT_DROPOUT = _detail("lora.dropout", number)
"""Rule for lora_dropout of a tool with its own trainer, which drops that share."""
