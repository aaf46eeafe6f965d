"""Explanations of unknown profile keys: names of other tools, renamed keys, and typing errors."""

from __future__ import annotations

from collections.abc import Mapping

from dpo_cli.profile.foreign.tools import TOOLS
from dpo_cli.profile.renames import RENAMED_KEYS
from dpo_cli.profile.schema import KEYS, TABLES
from dpo_cli.profile.text import did_you_mean

_MORE_NAMES: Mapping[str, tuple[str, ...]] = {
    "model.weights": (
        *("base_model_config", "model_id", "model_path", "checkpoint"),
        "pretrained_model_name_or_path",
    ),
    "model.reference": (
        *("reference_model", "ref_model_name_or_path", "ref_model_path"),
        "rl_adapter_ref_model",
    ),
    "model.tokenizer": ("tokenizer_name_or_path", "tokenizer_name", "tokenizer_config"),
    "data.data_path": ("dataset_path", "train_dataset"),
    "data.max_seq_len": ("max_seq_length", "model_max_length"),
    "data.truncation": ("truncation_side",),
    "data.columns": ("field_messages", "field_chosen", "field_rejected", "field_prompt"),
    "data.format": ("formatting", "ds_type", "dataset_format"),
    "data.mixture_weights": ("interleave_probs",),
    "dpo.beta": ("cpo_beta",),
    "dpo.label_smoothing": ("label_smoothing_factor",),
    "train.epochs": ("n_epochs",),
    "train.accumulation_steps": ("grad_accum",),
    "train.learning_rate": ("lr",),
    "train.grad_clip": ("gradient_clipping",),
    "train.dtype": ("amp", "mixed_precision"),
    "train.router_aux_loss_coef": ("router_aux_loss",),
    "eval.fraction": ("test_size",),
    "eval.path": ("eval_file", "validation_file"),
    "track.use_wandb": ("log_with",),
    "track.use_tensorboard": ("tensorboard",),
}
"""Names that no table of a tool has, by our key."""

_REMARKS: Mapping[str, str] = {
    "dataset_name": 'to "hf:ORG/NAME"',
    "dataset_config": 'to "hf:ORG/NAME:CONFIG/SPLIT"',
    "dataset_train_split": 'to "hf:ORG/NAME:CONFIG/SPLIT"',
    "model_revision": 'as "hf:ORG/NAME@REVISION"',
    "rpo_alpha": 'to ["sigmoid", "sft"], and dpo.loss_weights to [1, alpha]',
    "pref_ftx": 'to ["sigmoid", "sft"], and dpo.loss_weights to [1, pref_ftx]',
    "report_to": "to true, or the key of another tracker in [track]",
    "warmup_steps": "to warmup_steps x train.accumulation_steps, as it counts micro-batches",
    "logging_steps": "to logging_steps x train.accumulation_steps, as it counts micro-batches",
    "save_steps": "to save_steps x train.accumulation_steps, as it counts micro-batches",
    "eval_steps": "to eval_steps x train.accumulation_steps, as it counts micro-batches",
    "bf16": 'to "bfloat16"',
    "load_in_4bit": 'to "nf4", with lora.rank',
    "load_in_8bit": 'to "int8", with lora.rank',
    "quantization_bit": 'to "nf4" or "int8", with lora.rank',
    "bnb_4bit_quant_type": 'to "nf4", with lora.rank',
    "fp16": 'to "float16"',
    "lr_scheduler_type": 'to "linear", "cosine", "constant" or "wsd"',
    "lr_scheduler": 'to "linear", "cosine", "constant" or "wsd"',
    "adam_beta1": "to both betas, for example [0.9, 0.999]",
    "adam_beta2": "to both betas, for example [0.9, 0.999]",
    "orpo_alpha": 'with dpo.loss = "orpo"',
}
"""Remainder of "set KEY ..." for names that need one."""

_UNSUPPORTED: Mapping[str, tuple[str, ...]] = {
    "the adapters of [lora] are of linear layers alone, with one learning rate": (
        *("lora_modules", "lora_task_type", "modules_to_save", "additional_target", "peft_config"),
        *("lora_modules_to_save", "loraplus_lr_ratio", "pissa_init", "peft"),
        *("lora_on_cpu", "lora_fan_in_fan_out", "create_new_adapter"),
    ),
    'a model that does not fit on one device is trained with launch.strategy = "shard"': (
        *("fsdp", "fsdp_config", "deepspeed", "accelerate_config"),
    ),
    "each device computes all layers of the model": (
        *("device_map", "tensor_parallel_size"),
        *("context_parallel_size", "sequence_parallel_degree", "sequence_parallel_size"),
    ),
    "set train.adam_betas, train.adam_epsilon and train.weight_decay": ("optim_args",),
    "the length of a run is train.epochs": ("max_steps", "max_steps_per_epoch"),
    "all pairs are used; make a smaller file": (
        *("max_samples", "max_train_samples", "max_eval_samples", "sampling_ratio"),
    ),
    "a schedule has train.warmup_ratio, train.min_lr_ratio and, for wsd, train.decay_ratio": (
        *("lr_scheduler_kwargs", "lr_div_factor", "cosine_constant_lr_ratio"),
    ),
    "the loss is computed on the responses only": ("train_on_prompt", "train_on_input"),
    "every answer that data.scored_turns selects counts": ("mask_history", "loss_scale"),
    "weights are float32, or bfloat16 with model.weights_dtype; train.dtype is the precision of a"
    " pass": (*("pure_bf16", "bfloat16", "float16", "model_init_kwargs", "ref_model_init_kwargs"),),
    "all weights are trained, or adapters": (
        *("freeze_trainable_layers", "freeze_parameters", "unfrozen_parameters"),
        *("freeze_llm", "freeze_vit", "freeze_aligner"),
    ),
    "the tokenizer and its vocabulary stay as they are": (
        *("special_tokens", "tokens", "add_tokens", "add_special_tokens", "new_special_tokens"),
        "resize_vocab",
    ),
    "positions and embeddings stay as the model has them": (
        *("rope_scaling", "neftune_noise_alpha", "neftune_alpha", "overrides_of_model_config"),
    ),
    "the loss has no such term": (
        *("kto_chosen_weight", "kto_rejected_weight", "pref_bco_weight"),
        *("desirable_weight", "undesirable_weight", "reference_free"),
    ),
    "the order of the pairs follows train.seed": ("data_seed", "curriculum_sampling"),
    "the last, smaller batch is trained on, too": ("dataloader_drop_last", "drop_last"),
    "the two newest checkpoints are kept, and the best one with eval.keep_best": (
        *("save_total_limit", "save_strategy", "saves_per_epoch", "save_only_model"),
        "keep_last_n_checkpoints",
    ),
    "set eval.interval, in micro-batches": (
        *("evaluation_strategy", "evals_per_epoch", "eval_on_start", "eval_delay"),
    ),
    "code from a model's directory is never run": ("trust_remote_code",),
    "name the run with --name (name= in Python)": ("run_name", "project"),
    "dpo export RUN --to DIR writes the model to such a directory; --runs-dir (runs_dir= in Python)"
    " is that of the runs": ("output_dir",),
    "resume a run with dpo resume": ("resume_from_checkpoint", "from_resume", "auto_resume"),
    "nothing is uploaded; export the run and upload the directory": (
        *("push_to_hub", "hub_model_id", "hub_token"),
    ),
    "the chat template is the tokenizer's; for another one set model.tokenizer to a copy of the"
    " tokenizer with that chat_template": (
        *("chat_template_name", "system", "template_backend", "use_chat_template"),
        *("chat_template", "chat_template_jinja", "template", "default_system"),
    ),
    "dpo chooses the attention for the model and the device": (
        *(
            "attn_implementation",
            "attn_impl",
            "flash_attention",
            "flash_attn",
            "use_flash_attn",
            "sdp_attention",
        ),
        *("xformers_attention", "use_liger_kernel"),
    ),
    'batches are packed without padding, unless train.layout is "padded"': (
        *("packing", "sample_packing", "padding_free", "group_by_length"),
        *("pad_to_multiple_of", "pad_to_sequence_len", "eval_sample_packing", "packed"),
    ),
    "activations stay on the device; train.activation_checkpointing saves memory": (
        *("enable_activation_offloading", "activation_offloading"),
    ),
    "the reference is always computed once, and cached": (
        *("precompute_ref_log_probs", "precompute_ref_batch_size"),
    ),
    "the reference model never changes during a run": (
        *("sync_ref_model", "ref_model_mixup_alpha", "ref_model_sync_steps"),
    ),
}
"""Names of other tools without an equivalent, by what to say about them."""

WITHOUT_EFFECT = frozenset(
    {
        *("do_train", "do_eval", "overwrite_cache", "overwrite_output_dir", "logging_dir"),
        *("logging_first_step", "logging_strategy", "plot_loss", "disable_tqdm", "log_level"),
        *("remove_unused_columns", "dataloader_pin_memory", "dataloader_prefetch_factor"),
        *("dataloader_persistent_workers", "per_device_eval_batch_size", "eval_batch_size"),
        *("eval_accumulation_steps", "gradient_checkpointing_kwargs", "ddp_find_unused_parameters"),
        *("use_gradient_checkpointing", "dataset_prepared_path", "tokenizer_type", "model_type"),
        *("ddp_bucket_cap_mb", "logger", "debug", "strict", "exp_name", "use_slow_tokenizer"),
        *("is_llama_derived_model", "is_mistral_derived_model", "auto_resume_from_checkpoints"),
        *("report_to_hub", "wandb_entity", "wandb_watch", "wandb_name", "wandb_run_id"),
        *("wandb_log_model", "wandb_mode", "run_id", "project_name", "profiler", "seed_everything"),
        *("use_fast_tokenizer", "tokenizer_use_fast", "skip_memory_metrics", "dataset_dir_hash"),
        *("model._component_", "tokenizer._component_", "tokenizer.path", "save_safetensors"),
        *("checkpointer._component_", "checkpointer.checkpoint_files", "checkpointer.model_type"),
        *("checkpointer.recipe_checkpoint", "checkpointer.output_dir", "metric_logger.log_dir"),
        *("ref_checkpointer", "log_peak_memory_stats", "log_level", "save_adapter_weights_only"),
        *("main_process_port", "main_process_ip", "machine_rank", "rdzv_endpoint", "rdzv_backend"),
        *("master_port", "master_addr", "MASTER_PORT", "MASTER_ADDR", "node_rank", "standalone"),
        *("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "TOKENIZERS_PARALLELISM", "WANDB_MODE"),
        *("FORCE_TORCHRUN", "no_python", "num_cpu_threads_per_process", "dynamo_backend"),
        *("HF_ENDPOINT", "HF_HOME", "PYTORCH_CUDA_ALLOC_CONF", "NCCL_DEBUG", "config_name"),
        *("add_version", "model_author", "create_checkpoint_symlink", "lazy_tokenize"),
    }
)
"""Names of other tools that change nothing in the result of a run."""


def _equivalents() -> dict[str, str]:
    """Return our key for each name of another tool; names that are keys of ours are left out."""
    ours = {key.split(".")[1] for key in KEYS} | set(TABLES)
    found = {name: key for key, names in _MORE_NAMES.items() for name in names}
    for tool in TOOLS.values():
        for name, rule in tool.rules.items():
            if rule.keys and name not in ours and "." not in name:
                found.setdefault(name, rule.keys[0])
    return {name: key for name, key in found.items() if name not in _names_without()}


def _names_without() -> set[str]:
    return {name for names in _UNSUPPORTED.values() for name in names}


EQUIVALENT: Mapping[str, str] = _equivalents()
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
