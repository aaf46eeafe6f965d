"""Rules for schedule, warm-up, optimizer and weight decay, which most tools share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dpo_cli.profile.foreign.rules import (
    Context,
    NoCounterpartError,
    Rule,
    is_equal,
    items,
    number,
    part_of,
    whole,
)

SCHEDULE = "train.schedule"
_LEAST = "train.min_lr_ratio"
_SCHEDULES: Mapping[str, str] = {
    "linear": "linear",
    "cosine": "cosine",
    "cosine_with_min_lr": "cosine",
    "get_cosine_schedule_with_warmup": "cosine",
    "constant": "constant",
    "constant_with_warmup": "constant",
    "warmup_stable_decay": "wsd",
}
_OTHERS: Mapping[str, tuple[str, str]] = {
    "cosine_warmup_with_min_lr": ("cosine", "its rates are those of one step later"),
    "cosine_with_restarts": ("cosine", "here without restarts"),
    "polynomial": ("linear", "here a line to 0"),
}
"""Schedules that are nearly those of transformers, and the difference."""
_WARMUPS = ("warmup_steps", "warmup_ratio")
_OPTIMIZERS: Mapping[str, str] = {
    **dict.fromkeys(("adamw", "adamw_torch", "adamw_torch_fused", "adamw_hf"), "adamw"),
    **dict.fromkeys(("paged_adamw", "paged_adamw_32bit", "adamw_apex_fused"), "adamw"),
    **dict.fromkeys(("adamw_8bit", "adamw_bnb_8bit", "paged_adamw_8bit"), "adamw8bit"),
    **dict.fromkeys(("adamw8bit", "pagedadamw8bit"), "adamw8bit"),
    **{name: name for name in ("adafactor", "sgd", "muon")},
}
_DIFFERENT_OPTIMIZERS: Mapping[str, str] = {
    "adafactor": "that of torch, which multiplies the learning rate by the root mean square of each"
    " tensor of weights; without that, set a rate as much larger as the weights are smaller",
    "muon": "that of torch, with the learning rate scaled to AdamW's, which updates embeddings,"
    " norms and biases",
}
_OTHER_OPTIMIZER = "there is no such optimizer, so this profile trains with AdamW"


def _kind(value: Any) -> str:
    return str(value).rpartition(".")[2].lower()


def _schedule(value: Any, context: Context) -> Mapping[str, Any]:
    """Choose the schedule, and the settings that belong to it."""
    name = _kind(value)
    schedule = _SCHEDULES.get(name)
    if schedule is None:
        schedule, why = _OTHERS.get(name, ("linear", "there is no such schedule, so a line to 0"))
        context.differences.append(f"{name}: {why}")
    chosen: dict[str, Any] = {SCHEDULE: schedule}
    if schedule in ("cosine", "wsd") and (least := _least(context)):
        chosen[_LEAST] = least
    if schedule == "wsd" and (steps := _argument(context, "num_decay_steps")) is not None:
        chosen["train.decay_iters"] = whole(steps) * context.accumulation
    return chosen


def _argument(context: Context, name: str) -> Any:
    return context.values.get(f"lr_scheduler_kwargs.{name}")


def _least(context: Context) -> float:
    """Return the last rate as a share of the learning rate."""
    for name in ("min_lr_rate", "min_lr_ratio"):
        if (share := _argument(context, name)) is not None:
            return number(share)
    if (share := context.values.get("cosine_min_lr_ratio")) is not None:
        return number(share)
    rate, peak = _argument(context, "min_lr"), context.values.get("learning_rate")
    if rate is None or peak is None or not number(peak):
        return 0.0
    return float(f"{number(rate) / number(peak):.15g}")


schedule = Rule((SCHEDULE, _LEAST, "train.decay_iters"), _schedule)


def schedule_part(owner: str) -> Rule:
    """Accept an argument of the schedule, which the rule of `owner` reads."""
    return part_of(_LEAST, owner)


def _require_warmup(context: Context) -> None:
    for name in ("lr_scheduler_type", "lr_scheduler"):
        if _kind(context.values.get(name)) == "constant":
            raise NoCounterpartError(f'not used, because {name} is "constant"')


def _warmup_steps(value: Any, context: Context) -> Mapping[str, Any]:
    """Set the warm-up from a number of optimizer steps, or from a share below 1."""
    count = number(value)
    if count:
        _require_warmup(context)
    if 0 < count < 1:
        return {"train.warmup_ratio": count}
    return {"train.warmup_iters": whole(count) * context.accumulation}


def _warmup_ratio(value: Any, context: Context) -> Mapping[str, Any]:
    if not number(value):
        return {}
    _require_warmup(context)
    if number(context.values.get("warmup_steps") or 0):
        raise NoCounterpartError("not used, because warmup_steps is set")
    return {"train.warmup_ratio": number(value)}


warmup_steps = Rule(("train.warmup_iters", "train.warmup_ratio"), _warmup_steps)
warmup_ratio = Rule(("train.warmup_ratio",), _warmup_ratio)


def _optimizer(value: Any, context: Context) -> Mapping[str, Any]:
    name = _kind(value)
    if name not in _OPTIMIZERS or "torchao" in str(value):
        raise NoCounterpartError(_OTHER_OPTIMIZER)
    if name in _DIFFERENT_OPTIMIZERS:
        context.differences.append(f"{name}: {_DIFFERENT_OPTIMIZERS[name]}")
    return {"train.optimizer": _OPTIMIZERS[name]}


optimizer = Rule(("train.optimizer",), _optimizer)


def _weight_decay(value: Any, _: Context) -> Mapping[str, Any]:
    decay = number(value)
    only_matrices = {} if is_equal(decay, 0) else {"train.decay_norms_and_biases": False}
    return {"train.weight_decay": decay, **only_matrices}


weight_decay = Rule(("train.weight_decay", "train.decay_norms_and_biases"), _weight_decay)


def _betas(_: Any, context: Context) -> Mapping[str, Any]:
    values = (context.values.get("adam_beta1", 0.9), context.values.get("adam_beta2", 0.999))
    return {"train.adam_betas": [number(each) for each in values]}


def _pair(value: Any, _: Context) -> Mapping[str, Any]:
    return {"train.adam_betas": [number(each) for each in items(value)]}


beta = Rule(("train.adam_betas",), _betas)
betas = Rule(("train.adam_betas",), _pair)
