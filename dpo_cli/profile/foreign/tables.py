"""Rules of each tool, in the order in which they apply: later ones take precedence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dpo_cli.profile.foreign import common, datasets, optimization
from dpo_cli.profile.foreign.adapters import ADAPTERS, KEPT_DROPOUT, method, switched
from dpo_cli.profile.foreign.common import OBJECTIVE, TRAINING, TRL, hub_or_path, losses, with_sft
from dpo_cli.profile.foreign.rules import (
    Context,
    NoCounterpartError,
    Rule,
    choice,
    number,
    only,
    part_of,
    steps,
    switch,
    text,
    to,
    unless,
    whole,
)


def _shortened(key: str, value: str) -> Rule:
    """Set data.max_seq_len, and data.truncation to how the tool shortens longer pairs."""
    return Rule(
        ("data.max_seq_len", "data.truncation"),
        lambda given, _: {"data.max_seq_len": whole(given), "data.truncation": value},
    )


def _objective(names: Mapping[str, str]) -> Rule:
    """Set dpo.loss from the name of a method; "dpo" leaves the loss to other settings."""

    def convert(value: Any, _: Context) -> Mapping[str, Any]:
        name = str(value).lower()
        if name not in names:
            raise NoCounterpartError(f"{name} is another method; this profile trains DPO")
        return {"dpo.loss": names[name]}

    return Rule(("dpo.loss",), convert)


def per_epoch(key: str) -> Rule:
    """Explain `key` for a number of times per epoch, which has as many micro-batches as pairs."""

    def convert(value: Any, context: Context) -> Mapping[str, Any]:
        count, size = number(value), whole(context.values.get("micro_batch_size", 1))
        if count <= 0:
            return {}
        raise NoCounterpartError(
            f"set {key}, which counts micro-batches, to the number of training pairs divided by"
            f" {count * size:g} (times per epoch x micro_batch_size)"
        )

    return Rule((key,), convert)


_NO_SFT_TERM = only('this weight of an SFT term: dpo.loss = ["simpo", "sft"] adds one', 0)
_METHODS = {"dpo": "sigmoid", "ipo": "ipo", "simpo": "simpo", "orpo": "orpo"}

LLAMA_FACTORY: Mapping[str, Rule] = {
    **TRAINING,
    "stage": only("another method; this profile trains DPO", "dpo"),
    **ADAPTERS,
    "finetuning_type": method(8, "full"),
    "dataset": Rule(("data.data_path", "data.columns", "data.format"), datasets.factory_data),
    "dataset_dir": part_of("data.data_path", "dataset", "eval_dataset"),
    "eval_dataset": Rule(("eval.path",), datasets.factory_held_out),
    "val_size": common.fraction,
    "cutoff_len": to("data.max_seq_len", whole),
    "preprocessing_num_workers": to("data.num_workers", whole),
    "pref_loss": losses(),
    "pref_ftx": with_sft("pref_loss"),
    "pref_beta": to("dpo.beta", number),
    "dpo_label_smoothing": unless(0, to("dpo.label_smoothing", number)),
    "simpo_gamma": to("dpo.simpo_gamma", number),
    "ld_alpha": to("dpo.ld_alpha", number),
    "ref_model": hub_or_path("model.reference"),
    "early_stopping_steps": TRAINING["early_stopping_patience"],
    "moe_aux_loss_coef": to("train.router_aux_loss_coef", number),
    "use_swanlab": to("track.use_swanlab", switch),
    "swanlab_project": to("track.wandb_project", text),
}
AXOLOTL: Mapping[str, Rule] = {
    **{name: rule for name, rule in TRAINING.items() if not name.startswith("model_")},
    "base_model": hub_or_path("model.weights", "revision_of_model"),
    "revision_of_model": part_of("model.weights", "base_model"),
    "datasets": Rule(("data.data_path", "data.columns", "data.format"), datasets.axolotl_data),
    "test_datasets": Rule(("eval.path",), datasets.axolotl_held_out),
    "val_set_size": common.fraction,
    "sequence_len": _shortened("sequence_len", "drop"),
    "excess_length_strategy": choice("data.truncation", {"drop": "drop", "truncate": "end"}),
    "dataset_processes": to("data.num_workers", whole),
    "dataset_num_proc": to("data.num_workers", whole),
    "rl": _objective(_METHODS),
    "dpo_loss_type": losses(),
    "dpo_loss_weights": OBJECTIVE["loss_weights"],
    "rpo_alpha": with_sft("dpo_loss_type"),
    "rl_beta": to("dpo.beta", number),
    "orpo_alpha": to("dpo.beta", number),
    "dpo_label_smoothing": unless(0, to("dpo.label_smoothing", number)),
    "dpo_use_weighting": to("dpo.use_weighting", switch),
    "simpo_gamma": to("dpo.simpo_gamma", number),
    "cpo_alpha": _NO_SFT_TERM,
    "num_epochs": to("train.epochs", whole),
    "micro_batch_size": to("train.batch_size", whole),
    "lr_scheduler": optimization.schedule,
    "cosine_min_lr_ratio": optimization.schedule_part("lr_scheduler"),
    "optimizer": TRAINING["optim"],
    **ADAPTERS,
    "adapter": method(8, "", "none"),
    "evals_per_epoch": per_epoch("eval.interval"),
    "saves_per_epoch": per_epoch("train.save_interval"),
    "wandb_project": Rule(
        ("track.use_wandb", "track.wandb_project"),
        lambda value, _: (
            {"track.use_wandb": True, "track.wandb_project": text(value)} if value else {}
        ),
    ),
    "use_wandb": to("track.use_wandb", switch),
    "use_tensorboard": to("track.use_tensorboard", switch),
    "use_mlflow": to("track.use_mlflow", switch),
    "mlflow_experiment_name": to("track.wandb_project", text),
}
SWIFT: Mapping[str, Rule] = {
    "rlhf_type": _objective(_METHODS),
    **TRAINING,
    **OBJECTIVE,
    "model": hub_or_path("model.weights"),
    "ref_model": hub_or_path("model.reference"),
    "cpo_alpha": _NO_SFT_TERM,
    **ADAPTERS,
    **dict.fromkeys(("tuner_type", "train_type", "sft_type"), method(8, "full")),
    "dataset": Rule(("data.data_path",), datasets.swift_data),
    "use_hf": part_of("data.data_path", "dataset"),
    "val_dataset": Rule(
        ("eval.path",),
        lambda value, context: {"eval.path": datasets.swift_data(value, context)["data.data_path"]},
    ),
    "split_dataset_ratio": common.fraction,
    "max_length": to("data.max_seq_len", whole),
    "truncation_strategy": choice(
        "data.truncation", {"delete": "drop", "left": "prompt_start", "right": "end"}
    ),
    "dataset_num_proc": to("data.num_workers", whole),
    "torch_dtype": common.dtype,
    "router_aux_loss_coef": to("train.router_aux_loss_coef", number),
    "swanlab_project": to("track.wandb_project", text),
}


def _clip(value: Any, _: Context) -> Mapping[str, Any]:
    if number(value) <= 0:
        raise NoCounterpartError(
            "gradients are always clipped; train.grad_clip is their largest norm"
        )
    return {"train.grad_clip": number(value)}


def _ratio(value: Any, context: Context) -> Mapping[str, Any]:
    beta = next(
        (context.values[each] for each in ("dpo_beta", "beta") if each in context.values), 0.1
    )
    return {"dpo.simpo_gamma": float(f"{number(value) * number(beta):.12g}")}


def _instruct_loss(value: Any, _: Context) -> Mapping[str, Any]:
    names: Mapping[str, Mapping[str, Any]] = {
        "dpo": {"dpo.loss": "sigmoid"},
        "dpo_norm": {"dpo.loss": "sigmoid_norm"},
        "simpo": {"dpo.loss": "simpo"},
        "wpo": {"dpo.loss": "sigmoid", "dpo.use_weighting": True},
    }
    if str(value) not in names:
        raise NoCounterpartError("there is no such loss, so this profile trains DPO")
    return names[str(value)]


def _own_tokenizer(value: Any, context: Context) -> Mapping[str, Any]:
    if value != context.values.get("model_name_or_path"):
        raise NoCounterpartError("the tokenizer is that of the model")
    return {}


_MIXER = Rule(("data.data_path", "data.mixture_weights"), datasets.mixer)
_INSTRUCT_LOSS = Rule(("dpo.loss", "dpo.use_weighting"), _instruct_loss)
_INSTRUCT_RATIO = Rule(("dpo.simpo_gamma",), _ratio)
OPEN_INSTRUCT: Mapping[str, Rule] = {
    **TRAINING,
    **dict.fromkeys(("dataset_mixer_list", "mixer_list", "dataset_mixer"), _MIXER),
    "dataset_name": TRL["dataset_name"],
    "train_file": Rule(("data.data_path",), common.paths("data.data_path")),
    "tokenizer_name": Rule((), _own_tokenizer),
    "num_epochs": to("train.epochs", whole),
    "max_seq_length": _shortened("max_seq_length", "end"),
    "preprocessing_num_workers": to("data.num_workers", whole),
    **dict.fromkeys(("dpo_loss_type", "loss_type"), _INSTRUCT_LOSS),
    **{name: to("dpo.beta", number) for name in ("dpo_beta", "beta")},
    **{
        name: unless(0, to("dpo.label_smoothing", number))
        for name in ("dpo_label_smoothing", "label_smoothing")
    },
    **dict.fromkeys(("dpo_gamma_beta_ratio", "gamma_beta_ratio"), _INSTRUCT_RATIO),
    **{name: Rule(("train.grad_clip",), _clip) for name in ("clip_grad_norm", "max_grad_norm")},
    "with_tracking": to("track.use_wandb", switch),
    "checkpointing_steps": steps("train.save_interval"),
    "wandb_project_name": to("track.wandb_project", text),
    **ADAPTERS,
    "lora_dropout": KEPT_DROPOUT,
    "use_lora": switched(64),
}


def _tune_loss(value: Any, context: Context) -> Mapping[str, Any]:
    name = str(value).rpartition(".")[2]
    known = {"DPOLoss": "sigmoid", "RSOLoss": "hinge", "IPOLoss": "ipo", "SimPOLoss": "simpo"}
    if name not in known:
        raise NoCounterpartError(f"there is no loss {name!r}, so this profile trains DPO")
    return {"dpo.loss": known[name]}


def _tune_gamma(value: Any, context: Context) -> Mapping[str, Any]:
    is_rso = str(context.values.get("loss._component_", "")).endswith("RSOLoss")
    return {"dpo.beta" if is_rso else "dpo.simpo_gamma": number(value)}


def _tune_logger(value: Any, _: Context) -> Mapping[str, Any]:
    names = {"WandBLogger": "track.use_wandb", "TensorBoardLogger": "track.use_tensorboard"}
    name = str(value).rpartition(".")[2]
    if name in ("DiskLogger", "StdoutLogger"):
        return {}
    if name not in names:
        raise NoCounterpartError(f"no tracker {name!r}; every run keeps its events and a log")
    return {names[name]: True}


TORCHTUNE: Mapping[str, Rule] = {
    "checkpointer.checkpoint_dir": hub_or_path("model.weights"),
    "ref_checkpointer.checkpoint_dir": hub_or_path("model.reference"),
    "tokenizer.max_seq_len": _shortened("tokenizer.max_seq_len", "end"),
    "dataset": Rule(("data.data_path", "data.columns", "data.format"), datasets.torchtune_data),
    "shuffle": to("data.shuffle", switch),
    "loss._component_": Rule(("dpo.loss",), _tune_loss),
    "loss.beta": to("dpo.beta", number),
    "loss.tau": to("dpo.beta", number),
    "loss.gamma": Rule(("dpo.simpo_gamma", "dpo.beta"), _tune_gamma),
    "loss.label_smoothing": unless(0, to("dpo.label_smoothing", number)),
    "epochs": to("train.epochs", whole),
    "batch_size": to("train.batch_size", whole),
    "gradient_accumulation_steps": TRAINING["gradient_accumulation_steps"],
    "optimizer._component_": optimization.optimizer,
    "optimizer.lr": to("train.learning_rate", number),
    "optimizer.weight_decay": to("train.weight_decay", number),
    "optimizer.betas": optimization.betas,
    "optimizer.eps": to("train.adam_epsilon", number),
    "optimizer.fused": only("", True, False),
    "lr_scheduler._component_": optimization.schedule,
    "lr_scheduler.num_warmup_steps": optimization.warmup_steps,
    "clip_grad_norm": to("train.grad_clip", number),
    "seed": to("train.seed", whole),
    "device": to("train.device", text),
    "dtype": common.dtype,
    "compile": to("train.compile", switch),
    "enable_activation_checkpointing": to("train.activation_checkpointing", switch),
    "log_every_n_steps": steps("train.log_interval"),
    "metric_logger._component_": Rule(("track.use_wandb", "track.use_tensorboard"), _tune_logger),
    "metric_logger.project": to("track.wandb_project", text),
}


UNSLOTH: Mapping[str, Rule] = {
    **TRL,
    "model_name": hub_or_path("model.weights", "revision"),
    "revision": part_of("model.weights", "model_name"),
    "max_seq_length": only("the length of the model; pairs are shortened to max_length"),
    "full_finetuning": only("", True, False),
}
