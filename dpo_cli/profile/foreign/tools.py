"""The other tools: their tables, their defaults, and how to recognize them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from dpo_cli.profile.foreign.common import TRL
from dpo_cli.profile.foreign.minimind import MINIMIND, SCRIPTS
from dpo_cli.profile.foreign.rules import Rule
from dpo_cli.profile.foreign.tables import (
    AXOLOTL,
    LLAMA_FACTORY,
    OPEN_INSTRUCT,
    SWIFT,
    TORCHTUNE,
    UNSLOTH,
)

_RESPONSE: Mapping[str, Any] = {"data.shuffle": True, "data.scored_turns": "last"}
_USUAL: Mapping[str, Any] = {
    "num_train_epochs": 3,
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "lr_scheduler_type": "linear",
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
    "seed": 42,
    "save_steps": 500,
}
"""Defaults of transformers."""


@dataclass(frozen=True)
class Tool:
    """Another tool.

    Attributes:
        name: as in --from NAME:FILE.
        title: for people.
        rules: by name of the setting; later rules take precedence.
        marks: names that only this tool has, or that few have.
        defaults: returns the tool's own defaults that matter, for the settings that are given.
        always: keys of a profile that make the run do what this tool always does.
        programs: programs and scripts of the tool, as they begin its command lines.
    """

    name: str
    title: str
    rules: Mapping[str, Rule]
    marks: frozenset[str]
    defaults: Callable[[Mapping[str, Any]], Mapping[str, Any]]
    always: Mapping[str, Any]
    programs: tuple[str, ...] = ()


_TRL_DEFAULTS: Mapping[str, Any] = {
    **_USUAL,
    "learning_rate": 1e-6,
    "beta": 0.1,
    "max_length": 1024,
    "truncation_mode": "keep_start",
    "logging_steps": 10,
}


def _with_adapter(
    given: Mapping[str, Any], in_script: tuple[int, int], on_line: Mapping[str, Any]
) -> Mapping[str, Any]:
    """Return the defaults of an adapter: those of a LoraConfig in a script, or of the options."""
    if any(name.startswith("peft_config.") for name in given):
        rank, alpha = in_script
        return {"peft_config.r": rank, "peft_config.lora_alpha": alpha}
    return on_line


def _evaluates(given: Mapping[str, Any]) -> bool:
    """Return True if the settings evaluate, and name a data set."""
    strategy = str(given.get("eval_strategy", "no")).lower()
    return strategy not in ("no", "false") and "dataset_name" in given


def _swift_defaults(given: Mapping[str, Any]) -> Mapping[str, Any]:
    full = any(given.get(name) == "full" for name in ("tuner_type", "train_type", "sft_type"))
    batch = given.get("per_device_train_batch_size", 1)
    size = int(batch) if str(batch).isdigit() and int(batch) else 1
    return {
        **_USUAL,
        **({} if full else {"tuner_type": "lora", "lora_alpha": 32, "lora_dropout": 0.05}),
        "learning_rate": 1e-5 if full else 1e-4,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": max(1, -(-16 // size)),
        "lr_scheduler_type": "cosine",
        **({} if "warmup_steps" in given else {"warmup_ratio": 0.05}),
        "weight_decay": 0.1,
        "adam_beta2": 0.95,
        "beta": 0.1,
        **({"cpo_alpha": 1.0} if given.get("rlhf_type") == "simpo" else {}),
        "logging_steps": 5,
        "truncation_strategy": "delete",
    }


TOOLS: Mapping[str, Tool] = {
    tool.name: tool
    for tool in (
        Tool(
            "trl",
            "TRL",
            TRL,
            frozenset(
                {"loss_type", "max_length", "max_prompt_length", "dataset_name", "loss_weights"}
                | {"precompute_ref_log_probs", "truncation_mode", "trl", "dataset_train_split"}
                | {"model_init_kwargs", "f_divergence_type", "sync_ref_model"}
                | {"beta", "per_device_train_batch_size", "num_train_epochs", "warmup_steps"}
            ),
            lambda given: {
                **_TRL_DEFAULTS,
                **_with_adapter(given, (8, 8), {"lora_alpha": 32, "lora_dropout": 0.05}),
                **({} if "fp16" in given else {"bf16": "auto"}),
                **({"dataset_test_split": "test"} if _evaluates(given) else {}),
            },
            _RESPONSE,
            ("trl", "dpo.py", "run_dpo.py"),
        ),
        Tool(
            "llama-factory",
            "LLaMA-Factory",
            LLAMA_FACTORY,
            frozenset(
                {"stage", "finetuning_type", "template", "cutoff_len", "pref_beta", "pref_loss"}
                | {"pref_ftx", "dataset_dir", "val_size", "do_train", "overwrite_cache"}
                | {"lora_target", "preprocessing_num_workers"}
                | {"per_device_train_batch_size", "num_train_epochs"}
            ),
            lambda given: {
                **_USUAL,
                "finetuning_type": "lora",
                "learning_rate": 5e-5,
                "cutoff_len": 2048,
                "pref_beta": 0.1,
                "logging_steps": 500,
            },
            _RESPONSE,
            ("llamafactory-cli", "train_bash.py"),
        ),
        Tool(
            "axolotl",
            "Axolotl",
            AXOLOTL,
            frozenset(
                {"base_model", "rl", "sequence_len", "micro_batch_size", "val_set_size", "adapter"}
                | {"datasets", "rl_beta", "dataset_prepared_path", "num_epochs", "special_tokens"}
                | {"saves_per_epoch", "wandb_project", "sample_packing", "lr_scheduler"}
                | {"tokenizer_type", "model_type", "flash_attention", "optimizer"}
            ),
            lambda given: {
                "sequence_len": 512,
                "micro_batch_size": 1,
                "gradient_accumulation_steps": 1,
                "num_epochs": 1,
                "lr_scheduler": "cosine",
                **(
                    {}
                    if {"warmup_steps", "warmup_ratio"} & given.keys()
                    else {"warmup_ratio": 0.03}
                ),
                "weight_decay": 0.0,
                "max_grad_norm": 1.0,
                "seed": 42,
                **({"cpo_alpha": 1.0} if given.get("rl") == "simpo" else {}),
                **({} if "orpo_alpha" in given else {"rl_beta": 0.1}),
            },
            _RESPONSE,
            ("axolotl", "axolotl.cli.train"),
        ),
        Tool(
            "swift",
            "ms-swift",
            SWIFT,
            frozenset(
                {"rlhf_type", "train_type", "tuner_type", "sft_type", "torch_dtype", "model"}
                | {"split_dataset_ratio", "truncation_strategy", "target_modules", "use_hf"}
                | {"per_device_train_batch_size", "num_train_epochs", "system", "val_dataset"}
            ),
            _swift_defaults,
            _RESPONSE,
            ("swift", "megatron", "rlhf.py"),
        ),
        Tool(
            "torchtune",
            "torchtune",
            TORCHTUNE,
            frozenset(
                {"model._component_", "tokenizer._component_", "loss._component_", "checkpointer"}
                | {"optimizer._component_", "checkpointer._component_", "log_every_n_steps"}
                | {"lr_scheduler._component_", "metric_logger._component_", "max_steps_per_epoch"}
            ),
            lambda given: {
                "loss.beta": 0.1,
                "gradient_accumulation_steps": 1,
                **({} if "optimizer.weight_decay" in given else {"optimizer.weight_decay": 0.01}),
            },
            {**_RESPONSE, "data.shuffle": False},
            ("tune",),
        ),
        Tool(
            "open-instruct",
            "open-instruct",
            OPEN_INSTRUCT,
            frozenset(
                {"dataset_mixer_list", "mixer_list", "dataset_mixer", "use_slow_tokenizer"}
                | {"dpo_loss_type", "dpo_beta", "max_seq_length", "exp_name", "checkpointing_steps"}
                | {"with_tracking", "use_flash_attn", "try_launch_beaker_eval_jobs"}
                | {"per_device_train_batch_size", "num_train_epochs", "chat_template_name"}
            ),
            lambda given: {
                **_USUAL,
                "learning_rate": 2e-5,
                "num_train_epochs": 2,
                **({} if "warmup_steps" in given else {"warmup_ratio": 0.03}),
                **({} if {"beta", "dpo_beta"} & given.keys() else {"dpo_beta": 0.1}),
                **(
                    {}
                    if {"clip_grad_norm", "max_grad_norm"} & given.keys()
                    else {"clip_grad_norm": -1}
                ),
            },
            _RESPONSE,
            ("dpo_tune.py", "dpo_tune_cache.py", "dpo.py"),
        ),
        Tool(
            "minimind",
            "MiniMind",
            MINIMIND,
            frozenset({"hidden_size", "use_moe", "from_weight", "save_weight", "data_path"}),
            lambda given: {},
            {},
            SCRIPTS,
        ),
        Tool(
            "unsloth",
            "Unsloth",
            UNSLOTH,
            frozenset(
                {"load_in_4bit", "model_name", "max_seq_length", "use_gradient_checkpointing"}
            ),
            lambda given: {**_TRL_DEFAULTS, **_with_adapter(given, (16, 16), {})},
            _RESPONSE,
        ),
    )
}
"""Tools by name."""
