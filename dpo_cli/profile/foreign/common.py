"""Rules for the settings of transformers and TRL, which most tools share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dpo_cli.hub.download import is_on_hub
from dpo_cli.profile.foreign import optimization
from dpo_cli.profile.foreign.adapters import ADAPTERS
from dpo_cli.profile.foreign.rules import (
    Context,
    Convert,
    NoCounterpartError,
    Rule,
    choice,
    items,
    number,
    only,
    part_of,
    place,
    steps,
    switch,
    text,
    to,
    unless,
    whole,
)
from dpo_cli.profile.losses import LOSSES

_WEIGHTS = "model.weights"
_TRACKERS = {
    "wandb": "track.use_wandb",
    "swanlab": "track.use_swanlab",
    "tensorboard": "track.use_tensorboard",
    "trackio": "track.use_trackio",
    "mlflow": "track.use_mlflow",
}


def hub_or_path(key: str, revision: str = "model_revision") -> Rule:
    """Set `key` to a model: a path if it exists, else a name on the Hub with its revision."""

    def convert(value: Any, context: Context) -> Mapping[str, Any]:
        model = place(text(value), context)
        pinned = context.values.get(revision)
        if pinned in (None, "main"):
            return {key: model}
        if not model.startswith("hf:"):
            context.differences.append(f"{revision} = {pinned}: not used for a local directory")
            return {key: model}
        return {key: f"{model}@{text(pinned)}"}

    return Rule((key,), convert)


def losses(names: Mapping[str, str] = {}) -> Rule:
    """Set `dpo.loss` from one name or several; `names` renames some."""

    def convert(value: Any, _: Context) -> Mapping[str, Any]:
        found = [names.get(str(each), str(each)) for each in items(value)]
        if unknown := [each for each in found if each not in LOSSES]:
            raise NoCounterpartError(
                f"there is no loss {unknown[0]!r} (docs/losses.md), so this profile trains DPO,"
                " the loss sigmoid"
            )
        return {"dpo.loss": found[0] if len(found) == 1 else found}

    return Rule(("dpo.loss",), convert)


def with_sft(loss_name: str) -> Rule:
    """Add `sft` with this weight to the loss that the setting `loss_name` names."""

    def convert(value: Any, context: Context) -> Mapping[str, Any]:
        weight = number(value)
        if weight == 0:
            return {}
        main = [str(each) for each in items(context.values.get(loss_name, "sigmoid"))]
        if any(each not in LOSSES for each in main) or "sft" in main:
            raise NoCounterpartError('add "sft" to dpo.loss, with its weight in dpo.loss_weights')
        return {"dpo.loss": [*main, "sft"], "dpo.loss_weights": [*([1.0] * len(main)), weight]}

    return Rule(("dpo.loss", "dpo.loss_weights"), convert)


def _precision(value: Any, context: Context) -> Mapping[str, Any]:
    if str(value).lower() in ("auto", "full"):
        context.differences.append(
            'train.dtype = "auto" is float32 on a CPU and on MPS, bfloat16 on other GPUs (float16'
            " on those that only emulate it)"
        )
        return {"train.dtype": "auto"}
    if switch(value):
        return {"train.dtype": "bfloat16"}
    half = str(context.values.get("fp16", False)).lower() == "true"
    return {} if half else {"train.dtype": "float32"}


bf16 = Rule(("train.dtype",), _precision)
fp16 = Rule(("train.dtype",), lambda value, _: {"train.dtype": "float16"} if switch(value) else {})
dtype = choice(
    "train.dtype",
    {
        name: full
        for full, names in {
            "bfloat16": ("bf16", "bfloat16", "torch.bfloat16"),
            "float16": ("fp16", "float16", "torch.float16"),
            "float32": ("fp32", "float32", "torch.float32", "no"),
            "auto": ("auto",),
        }.items()
        for name in names
    },
)


def _trackers(value: Any, _: Context) -> Mapping[str, Any]:
    names = [str(each).lower() for each in items(value)]
    if others := [name for name in names if name not in (*_TRACKERS, "none", "all")]:
        raise NoCounterpartError(f"no tracker {others[0]!r}; set track.use_wandb, ... yourself")
    return {_TRACKERS[name]: True for name in names if name in _TRACKERS}


trackers = Rule(tuple(_TRACKERS.values()), _trackers)


def _fraction(value: Any, _: Context) -> Mapping[str, Any]:
    share = number(value)
    if share >= 1:
        raise NoCounterpartError("a number of pairs; set eval.fraction to their share")
    return {"eval.fraction": share} if share else {}


fraction = Rule(("eval.fraction",), _fraction)


def _evaluations(value: Any, context: Context) -> Mapping[str, Any]:
    if str(context.values.get("eval_strategy", "")).lower() in ("no", "false"):
        raise NoCounterpartError('not used, because eval_strategy is "no"')
    return steps("eval.interval").convert(value, context)


def _strategy(value: Any, _: Context) -> Mapping[str, Any]:
    if str(value).lower() == "epoch":
        raise NoCounterpartError(
            "held-out pairs are evaluated before and after training; for more, set eval.interval to"
            " the micro-batches of an epoch"
        )
    return {}


def _patience(value: Any, _: Context) -> Mapping[str, Any]:
    return {"eval.patience": whole(value), "eval.keep_best": True}


def _truncation(value: Any, context: Context) -> Mapping[str, Any]:
    if str(value) == "keep_start":
        return {"data.truncation": "end"}
    if str(value) != "keep_end":
        raise NoCounterpartError("choose data.truncation")
    context.differences.append(
        "keep_end cuts the beginning of the whole text; here the prompt is cut first, and keeps its"
        " system turn and headers"
    )
    return {"data.truncation": "prompt_start"}


def _prompt_length(value: Any, _: Context) -> Mapping[str, Any]:
    return {"data.max_prompt_len": whole(value), "data.truncation": "prompt_start"}


def hub_data(value: Any, context: Context, revision: str, config: str, split: str) -> str:
    """Return a data set for data.data_path, with the settings that choose its part."""
    name = place(text(value), context)
    if not name.startswith("hf:"):
        return name
    values = context.values
    part = str(values.get(split) or "")
    whole_split = part.partition("[")[0]
    if part != whole_split or (not part.replace("_", "a").isalnum() and part):
        part = whole_split if whole_split.replace("_", "a").isalnum() else ""
        context.differences.append(
            f"{split} = {values[split]}: only whole splits are read, so this is all of"
            f" {part or 'the usual split'}"
        )
    if values.get(revision) not in (None, "main"):
        name += f"@{text(values[revision])}"
    chosen = text(values[config]) if values.get(config) else ""
    if chosen or part not in ("", "train"):
        name += f":{chosen or 'default'}" + (f"/{part}" if part else "")
    return name


def _dataset(value: Any, context: Context) -> Mapping[str, Any]:
    parts = ("dataset_revision", "dataset_config", "dataset_train_split")
    kinds = ("json", "parquet", "csv", "arrow", "text")
    if str(value) in kinds and "data_files" in context.values:
        return {}  # a reader, whose files are in data_files
    return {"data.data_path": hub_data(value, context, *parts)}


def _held_out(value: Any, context: Context) -> Mapping[str, Any]:
    name = context.values.get("dataset_name")
    if str(context.values.get("eval_strategy", "no")).lower() == "no" or not name:
        raise NoCounterpartError('not used, because eval_strategy is "no"')
    parts = ("dataset_revision", "dataset_config", "dataset_test_split")
    held_out = hub_data(name, context, *parts)
    if not is_on_hub(held_out):
        raise NoCounterpartError(
            f"{held_out} is on this machine; set eval.path to the file of that split in it, and"
            " data.data_path to those of the training pairs"
        )
    return {"eval.path": held_out}


def paths(key: str) -> Convert:
    """Return a conversion to a path, or to several."""

    def convert(value: Any, context: Context) -> Mapping[str, Any]:
        if isinstance(value, dict):
            found = [each for part in value.values() for each in items(part)]
        else:
            found = items(value)
        names = [context.path(text(each)) for each in found]
        return {key: names[0] if len(names) == 1 else names}

    return convert


TRAINING: Mapping[str, Rule] = {
    "model_name_or_path": hub_or_path(_WEIGHTS),
    "model_revision": part_of(_WEIGHTS, "model_name_or_path", "model"),
    "num_train_epochs": to("train.epochs", whole),
    "per_device_train_batch_size": to("train.batch_size", whole),
    "gradient_accumulation_steps": to("train.accumulation_steps", whole),
    "learning_rate": to("train.learning_rate", number),
    "lr_scheduler_type": optimization.schedule,
    **{
        f"lr_scheduler_kwargs.{name}": optimization.schedule_part("lr_scheduler_type")
        for name in ("min_lr_rate", "min_lr", "min_lr_ratio", "num_decay_steps")
    },
    "warmup_steps": optimization.warmup_steps,
    "warmup_ratio": optimization.warmup_ratio,
    "optim": optimization.optimizer,
    "weight_decay": optimization.weight_decay,
    "adam_beta1": optimization.beta,
    "adam_beta2": optimization.beta,
    "adam_epsilon": to("train.adam_epsilon", number),
    "max_grad_norm": to("train.grad_clip", number),
    "seed": to("train.seed", whole),
    "train_sampling_strategy": choice(
        "data.shuffle",
        {"random": True, "sequential": False},
        "pairs of like length are computed together in any order",
    ),
    "bf16": bf16,
    "fp16": fp16,
    "tf32": to("train.tf32", switch),
    "gradient_checkpointing": to("train.activation_checkpointing", switch),
    "torch_compile": to("train.compile", switch),
    "full_determinism": to("train.deterministic", switch),
    "logging_steps": steps("train.log_interval"),
    "save_steps": steps("train.save_interval"),
    "eval_strategy": Rule(("eval.interval",), _strategy),
    "eval_steps": Rule(("eval.interval",), _evaluations),
    "load_best_model_at_end": to("eval.keep_best", switch),
    "early_stopping_patience": Rule(("eval.patience", "eval.keep_best"), _patience),
    "metric_for_best_model": only("the best checkpoint has the lowest held-out loss", "eval_loss"),
    "report_to": trackers,
    "project": to("track.wandb_project", text),
    "ddp_timeout": to("launch.timeout_seconds", number),
    "dataloader_num_workers": only("all cores tokenize; data.num_workers is their number", 0),
}
"""Arguments of transformers' TrainingArguments."""

OBJECTIVE: Mapping[str, Rule] = {
    "loss_type": losses(),
    "loss_weights": Rule(
        ("dpo.loss_weights",),
        lambda value, _: {"dpo.loss_weights": [number(each) for each in items(value)]},
    ),
    "rpo_alpha": with_sft("loss_type"),
    "beta": to("dpo.beta", number),
    "label_smoothing": unless(0, to("dpo.label_smoothing", number)),
    "f_divergence_type": to("dpo.f_divergence_type", lambda value: str(value).lower()),
    "f_alpha_divergence_coef": to("dpo.f_alpha_divergence_coef", number),
    "ld_alpha": to("dpo.ld_alpha", number),
    "use_weighting": to("dpo.use_weighting", switch),
    "discopop_tau": to("dpo.discopop_tau", number),
    "simpo_gamma": to("dpo.simpo_gamma", number),
}
"""Arguments of TRL's DPOConfig that define the loss."""

TRL: Mapping[str, Rule] = {
    **TRAINING,
    **OBJECTIVE,
    **ADAPTERS,
    "dataset_name": Rule(("data.data_path",), _dataset),
    "dataset_config": part_of("data.data_path", "dataset_name"),
    "dataset_train_split": part_of("data.data_path", "dataset_name"),
    "dataset_revision": part_of("data.data_path", "dataset_name"),
    "dataset_test_split": Rule(("eval.path",), _held_out),
    "train_file": Rule(("data.data_path",), paths("data.data_path")),
    "data_files": Rule(("data.data_path",), paths("data.data_path")),
    "max_length": to("data.max_seq_len", whole),
    "truncation_mode": Rule(("data.truncation",), _truncation),
    "max_prompt_length": Rule(("data.max_prompt_len", "data.truncation"), _prompt_length),
    "dataset_num_proc": to("data.num_workers", whole),
    "num_processes": to("launch.nproc_per_node", whole),
    "router_aux_loss_coef": to("train.router_aux_loss_coef", number),
    "disable_dropout": only("set model.dropout", True),
    "precompute_ref_log_probs": Rule((), lambda value, context: {}),
    "padding_free": Rule((), lambda value, context: {}),
}
"""Arguments of `trl dpo`: TRL's DPOConfig, ScriptArguments and ModelConfig."""
