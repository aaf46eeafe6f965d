"""Explanations of unknown profile keys: names of other tools, renamed keys, and typing errors."""

from __future__ import annotations

from collections.abc import Mapping

from dpo_cli.profile.renames import RENAMED_KEYS
from dpo_cli.profile.schema import KEYS, TABLES
from dpo_cli.profile.text import did_you_mean

_EQUIVALENTS: Mapping[str, tuple[str, ...]] = {
    "model.weights": (
        *("model_name_or_path", "model_name", "base_model", "base_model_config", "model_id"),
        *("model_path", "pretrained_model_name_or_path", "model_revision"),
        *("from_weight", "checkpoint"),
    ),
    "model.reference": (
        *("ref_model", "reference_model", "ref_model_name_or_path", "ref_model_path"),
        "rl_adapter_ref_model",
    ),
    "model.tokenizer": ("tokenizer_name_or_path", "tokenizer_name", "tokenizer_config"),
    "model.out_dir": ("save_dir",),
    "data.data_path": (
        *("dataset", "datasets", "dataset_path", "dataset_dir", "train_file", "train_dataset"),
        "data_files",
    ),
    "data.max_seq_len": (
        *("max_length", "max_seq_length", "cutoff_len", "sequence_len", "model_max_length"),
    ),
    "data.max_prompt_len": ("max_prompt_length",),
    "data.truncation": ("truncation_mode", "truncation_side", "excess_length_strategy"),
    "data.num_workers": (
        *("preprocessing_num_workers", "dataset_num_proc", "dataset_processes"),
        *("dataloader_num_workers",),
    ),
    "data.columns": ("field_messages", "field_chosen", "field_rejected", "field_prompt"),
    "data.format": ("formatting", "ds_type", "dataset_format"),
    "data.mixture_weights": ("interleave_probs",),
    "dpo.beta": ("pref_beta", "rl_beta", "dpo_beta", "orpo_alpha", "cpo_beta"),
    "dpo.loss": ("loss_type", "pref_loss", "dpo_loss_type", "rpo_alpha", "pref_ftx", "rl"),
    "dpo.loss_weights": ("dpo_loss_weights",),
    "dpo.label_smoothing": ("dpo_label_smoothing", "label_smoothing_factor"),
    "dpo.use_weighting": ("dpo_use_weighting",),
    "dpo.simpo_gamma": ("gamma_beta_ratio",),
    "train.epochs": ("num_train_epochs", "num_epochs", "n_epochs"),
    "train.batch_size": ("per_device_train_batch_size", "micro_batch_size"),
    "train.accumulation_steps": ("gradient_accumulation_steps", "grad_accum"),
    "train.learning_rate": ("lr",),
    "train.schedule": ("lr_scheduler_type", "lr_scheduler"),
    "train.warmup_iters": ("warmup_steps",),
    "train.grad_clip": ("max_grad_norm", "gradient_clipping"),
    "train.dtype": ("bf16", "fp16", "amp", "torch_dtype", "mixed_precision"),
    "train.activation_checkpointing": ("gradient_checkpointing",),
    "train.compile": ("torch_compile", "use_compile"),
    "train.router_aux_loss_coef": ("moe_aux_loss_coef", "router_aux_loss"),
    "train.deterministic": ("full_determinism",),
    "train.log_interval": ("logging_steps",),
    "train.save_interval": ("save_steps",),
    "eval.fraction": ("val_size", "val_set_size", "test_size"),
    "eval.path": ("eval_dataset", "test_datasets", "eval_file", "validation_file"),
    "eval.interval": ("eval_steps",),
    "eval.keep_best": ("load_best_model_at_end",),
    "eval.patience": ("early_stopping_patience", "early_stopping_steps"),
    "export.prefix": ("save_weight",),
    "launch.timeout_seconds": ("ddp_timeout",),
    "track.use_wandb": ("report_to", "log_with"),
    "track.use_tensorboard": ("tensorboard",),
}
"""Names of TRL, transformers, LLaMA-Factory, Axolotl and MiniMind's scripts, by our key."""

_REMARKS: Mapping[str, str] = {
    "model_revision": 'as "hf:ORG/NAME@REVISION"',
    "rpo_alpha": 'to ["sigmoid", "sft"], and dpo.loss_weights to [1, alpha]',
    "pref_ftx": 'to ["sigmoid", "sft"], and dpo.loss_weights to [1, pref_ftx]',
    "report_to": "or track.use_swanlab or track.use_tensorboard to true",
    "warmup_steps": "to warmup_steps x train.accumulation_steps, as it counts micro-batches",
    "logging_steps": "to logging_steps x train.accumulation_steps, as it counts micro-batches",
    "save_steps": "to save_steps x train.accumulation_steps, as it counts micro-batches",
    "eval_steps": "to eval_steps x train.accumulation_steps, as it counts micro-batches",
    "bf16": 'to "bfloat16"',
    "fp16": 'to "float16"',
    "lr_scheduler_type": 'to "minimind3", a cosine that ends at a tenth of the learning rate',
    "lr_scheduler": 'to "minimind3", a cosine that ends at a tenth of the learning rate',
    "orpo_alpha": 'with dpo.loss = "orpo"',
}
"""Remainder of "set KEY ..." for names that need one."""

_UNSUPPORTED: Mapping[str, tuple[str, ...]] = {
    "adapters are not supported yet; dpo trains all weights": (
        *("lora_r", "lora_rank", "lora_alpha", "lora_dropout", "lora_target", "lora_modules"),
        *("lora_target_modules", "lora_target_linear", "lora_task_type", "lora_model_dir"),
        *("lora", "peft", "use_peft", "peft_config", "adapter", "adapter_name_or_path"),
        *("use_rslora", "use_dora", "modules_to_save", "additional_target", "finetuning_type"),
        *("lora_modules_to_save", "loraplus_lr_ratio", "pissa_init", "create_new_adapter"),
    ),
    "quantized training is not supported yet; dpo trains float32 weights": (
        *("load_in_4bit", "load_in_8bit", "quantization_bit", "quantization_method", "qlora"),
        *("bnb_4bit_quant_type", "use_bnb_nested_quant", "double_quantization", "quantization"),
    ),
    "sharded training is not supported yet; each device holds the whole model": (
        *("fsdp", "fsdp_config", "deepspeed", "device_map", "tensor_parallel_size"),
        *("context_parallel_size", "sequence_parallel_degree"),
    ),
    "data sets on the Hub are not supported yet; download the file and set data.data_path": (
        *("dataset_name", "dataset_config", "dataset_train_split", "dataset_split", "streaming"),
    ),
    "the optimizer is AdamW with betas 0.9 and 0.999, and a weight decay of 0.01": (
        *("optim", "optimizer", "optim_args", "weight_decay", "adam_beta1", "adam_beta2"),
        "adam_epsilon",
    ),
    "the length of a run is train.epochs": ("max_steps",),
    "set train.warmup_iters to the number of micro-batches": ("warmup_ratio",),
    "the two newest checkpoints are kept, and the best one with eval.keep_best": (
        *("save_total_limit", "save_strategy", "saves_per_epoch"),
    ),
    "evaluation follows eval.interval, in micro-batches": (
        *("eval_strategy", "evaluation_strategy", "evals_per_epoch"),
    ),
    "code from a model's directory is never run": ("trust_remote_code",),
    "name the run with --name (name= in Python)": ("run_name", "project"),
    "choose the directory of runs with --runs-dir (runs_dir= in Python)": ("output_dir",),
    "resume a run with dpo resume": ("resume_from_checkpoint", "from_resume", "auto_resume"),
    "nothing is uploaded; export the run and upload the directory": (
        *("push_to_hub", "hub_model_id", "hub_token"),
    ),
    "the chat template is the tokenizer's; change it there": (
        *("chat_template", "chat_template_jinja", "template", "default_system"),
    ),
    "dpo chooses the attention for the model and the device": (
        *("attn_implementation", "flash_attention", "flash_attn", "sdp_attention"),
        *("xformers_attention", "use_liger_kernel"),
    ),
    'batches are packed without padding, unless train.layout is "padded"': (
        *("packing", "sample_packing", "padding_free", "group_by_length"),
    ),
    "the reference is always computed once, and cached": (
        *("precompute_ref_log_probs", "precompute_ref_batch_size"),
    ),
    "the reference model never changes during a run": ("sync_ref_model", "ref_model_mixup_alpha"),
}
"""Names of other tools without an equivalent, by what to say about them."""

EQUIVALENT: Mapping[str, str] = {name: key for key, names in _EQUIVALENTS.items() for name in names}
"""Our key for each name of another tool."""

UNSUPPORTED: Mapping[str, str] = {
    name: why for why, names in _UNSUPPORTED.items() for name in names
}
"""Explanation for each name without an equivalent."""


def explain_unknown_key(key: str) -> str:
    """Explain an unknown key: what to set instead, or the keys of its table."""
    if key in TABLES:
        return f"is a table; write its keys below a line [{key}]"
    if key == "extends":
        return "only a file can extend another profile; set extends in the file"
    if key in RENAMED_KEYS:
        return f"{key} is now {RENAMED_KEYS[key]}; rename it"
    table, _, field = key.rpartition(".")
    if explanation := _of_other_tool(table, field):
        return explanation
    if hint := _near(key):
        return f"unknown key{hint}"
    if table in TABLES:
        return f"unknown key; [{table}] has {', '.join(TABLES[table].model_fields)}"
    return f"unknown key; the tables are {', '.join(TABLES)}"


def key_for_option(option: str) -> tuple[str, str]:
    """Return the profile key that an unknown option such as --epochs means, or an explanation.

    Both are empty if the option means nothing here.
    """
    field = option.lstrip("-").replace("-", "_").split("=")[0].rpartition(".")[2]
    if field in EQUIVALENT:
        return EQUIVALENT[field], ""
    known = [key for key in KEYS if key.endswith(f".{field}")]
    return (known[0] if known else ""), UNSUPPORTED.get(field, "")


def _of_other_tool(table: str, field: str) -> str:
    """Explain a name of another tool, in whatever table it was written."""
    # Axolotl and LLaMA-Factory nest some of their settings: lora.r, wandb.project.
    nested = f"{table}_{field}"
    if ours := next((key for key in KEYS if key.endswith(f".{nested}")), None):
        return f"unknown key; set {ours}"
    for name in (nested, field, table):
        if name in EQUIVALENT and not (name == table and table in TABLES):
            remark = f" {_REMARKS[name]}" if name in _REMARKS else ""
            return f"unknown key; set {EQUIVALENT[name]}{remark}"
        if name in UNSUPPORTED:
            return UNSUPPORTED[name]
    return ""


def _near(key: str) -> str:
    """Return "; did you mean KEY?" for a key that differs by its table or a few letters."""
    table, _, field = key.rpartition(".")

    def full_name(near: str) -> str:
        if f"{table}.{near}" in KEYS:
            return f"{table}.{near}"
        return " or ".join(known for known in KEYS if known.endswith(f".{near}")) or near

    fields = [known.split(".")[1] for known in KEYS]
    return did_you_mean(field, [*fields, *TABLES, "extends"], full_name)
