from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from dpo_cli.profile.load import LoadedProfile, load_profile
from dpo_cli.profile.resolved import Change, differences, to_toml
from dpo_cli.profile.schema import KEYS, Profile
from dpo_cli.profile.table import Effect

Load = Callable[..., LoadedProfile]

ALL_VALUES: dict[str, dict[str, object]] = {
    "model": {
        "out_dir": "/out",
        "weights": "/weights/a $ sign/full_sft_512.pth",
        "reference": "run:first",
        "adapter": "/out/sft $1",
        "tokenizer": "/model/$HOME",
        "quantization": "nf4",
        "weights_dtype": "float32",
        "hidden_size": 512,
        "num_hidden_layers": 8,
        "use_moe": True,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "num_experts_per_tok": 2,
        "norm_topk_prob": True,
        "rope_theta": 1e6,
        "rms_norm_eps": 1e-5,
        "dropout": 0.1,
    },
    "data": {
        "data_path": ['/数据/a "b".jsonl', "/data/a $ sign"],
        "mixture_weights": [1.0, 0.5],
        "format": "plain",
        "columns": {"prompt": "question", "chosen": "$best"},
        "max_seq_len": 512,
        "shuffle": True,
        "empty_think_ratio": 0.5,
        "scored_turns": "last",
        "truncation": "drop",
        "max_prompt_len": 100,
        "num_workers": 3,
    },
    "dpo": {
        "loss": ["sigmoid", "robust"],
        "loss_weights": [1.0, 0.5],
        "beta": 5.0,
        "reduction": "sum",
        "label_smoothing": 0.1,
        "f_divergence_type": "alpha_divergence",
        "f_alpha_divergence_coef": 0.3,
        "ld_alpha": 0.4,
        "use_weighting": True,
        "discopop_tau": 0.1,
        "simpo_gamma": 1.2,
        "dpop_lambda": 5.0,
    },
    "lora": {
        "rank": 4,
        "alpha": 8,
        "dropout": 0.1,
        "target_modules": ["q_proj", "v_proj"],
        "use_dora": True,
        "use_rslora": True,
        "init_lora_weights": "gaussian",
        "continue_adapter": True,
    },
    "train": {
        "epochs": 3,
        "batch_size": 2,
        "accumulation_steps": 4,
        "global_batch_size": 8,
        "learning_rate": 3.3e-8,
        "schedule": "wsd",
        "warmup_iters": 5,
        "min_lr_ratio": 0.1,
        "decay_iters": 6,
        "adam_betas": [0.8, 0.95],
        "adam_epsilon": 1e-6,
        "weight_decay": 0.1,
        "decay_norms_and_biases": False,
        "optimizer": "adamw",
        "kahan_summation": True,
        "grad_clip": 0.5,
        "nan_policy": "skip",
        "seed": 42,
        "device": "cuda:1",
        "dtype": "float16",
        "threads": 2,
        "tf32": True,
        "activation_checkpointing": True,
        "compile": True,
        "router_aux_loss_coef": 0.1,
        "layout": "padded",
        "max_tokens_per_forward": 2048,
        "aux_loss_tokens": "all",
        "deterministic": True,
        "log_interval": 7,
        "save_interval": 8,
        "save_min_seconds": 0.0,
    },
    "eval": {
        "path": "/held.jsonl",
        "interval": 9,
        "keep_best": True,
        "num_samples": 3,
        "patience": 4,
    },
    "export": {"prefix": "dpo", "dtype": "float32"},
    "launch": {
        "nproc_per_node": "auto",
        "strategy": "shard",
        "nnodes": 3,
        "node_rank": 1,
        "rdzv_endpoint": "node0:29400",
        "rdzv_backend": "static",
        "max_restarts": 2,
        "timeout_seconds": 60.0,
    },
    "track": {
        "use_wandb": True,
        "wandb_project": "mine",
        "use_swanlab": True,
        "use_tensorboard": True,
        "use_trackio": True,
        "use_mlflow": True,
        "send_text": True,
    },
}


def reload(profile: Profile, folder: Path) -> Profile:
    path = folder / "elsewhere" / "profile.toml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(to_toml(profile), encoding="utf-8")
    return load_profile(path).profile


def test_toml_round_trip(load: Load, folder: Path) -> None:
    for profile in (load().profile, Profile.model_validate(ALL_VALUES)):
        assert reload(profile, folder) == profile


def test_all_values_cover_all_keys() -> None:
    keys = {f"{table}.{field}" for table, fields in ALL_VALUES.items() for field in fields}
    # Keys that exclude eval.path, warmup_iters and decay_iters.
    assert KEYS.keys() - keys == {"eval.fraction", "train.warmup_ratio", "train.decay_ratio"}


def test_a_bare_weights_name_stays_a_name(load: Load, folder: Path) -> None:
    profile = load("", "model.weights=a$b.pth").profile
    assert reload(profile, folder).model.weights == "a$b.pth"


def test_only_keys_with_a_value_are_written(load: Load) -> None:
    text = to_toml(load().profile)
    assert "hidden_size" not in text
    assert "epochs = 2" in text


def test_differences_have_their_effects(load: Load) -> None:
    old = load().profile
    new = load(
        "[dpo]\nbeta = 0.2\n",
        "train.learning_rate=4e-8",
        "train.batch_size=8",
        "model.weights=x.pth",
        "train.schedule=minimind3",
    ).profile
    assert differences(old, new) == [
        Change("model.weights", None, "x.pth", Effect.NONE),
        Change("dpo.beta", 0.1, 0.2, Effect.MATHEMATICS),
        Change("train.batch_size", 4, 8, Effect.POSITION),
        Change("train.learning_rate", 1e-8, 4e-8, Effect.MATHEMATICS),
        Change("train.schedule", "minimind2", "minimind3", Effect.MATHEMATICS),
    ]
    assert differences(old, old) == []


def test_a_change_as_text() -> None:
    assert str(Change("train.epochs", 2, 4, Effect.MATHEMATICS)) == "train.epochs: 2 -> 4"
    assert str(Change("eval.path", None, Path("/e"), Effect.NONE)) == 'eval.path: unset -> "/e"'
