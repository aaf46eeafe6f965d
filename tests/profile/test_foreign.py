"""Tests of settings of other tools: a realistic file of each, and no setting is lost."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from dpo_cli.errors import UsageError
from dpo_cli.profile.foreign.source import read_foreign
from dpo_cli.profile.foreign.tools import TOOLS
from dpo_cli.profile.foreign.translate import Translation, translate
from dpo_cli.profile.load import load_profile
from dpo_cli.profile.recipe import FILL_IN
from dpo_cli.profile.template import render, render_short
from tests.support.cli import REPOSITORY
from tests.support.foreign import translated

FILES = REPOSITORY / "tests/profile/foreign"
DOCUMENTED = REPOSITORY / "tests/profile/documented"
"""Examples as the documentation of the tools has them; `FILES` have many settings."""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty working directory."""
    folder = tmp_path / "far" / "away" / "here"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    return folder


def of(source: str, **options: str) -> Translation:
    return translate(read_foreign(source), Path.cwd() / "profiles", **options)


def of_file(name: str, as_name: str = "") -> Translation:
    shutil.copy(FILES / name, as_name or name)
    return of(as_name or name)


def of_yaml(text: str) -> Translation:
    Path("config.yaml").write_text(text)
    return of("config.yaml")


def from_file(translation: Translation) -> dict[str, Any]:
    """Return the values that the file itself contains."""
    return {
        key: value
        for key, value in translation.values.items()
        if "default" not in translation.origins[key] and " does" not in translation.origins[key]
    }


def names(entries: list[str]) -> set[str]:
    return {entry.split(" = ")[0].split(": ")[0].removesuffix(" (empty)") for entry in entries}


def check_profile(translation: Translation) -> None:
    """Require that both texts load with the translated values, and that keys name their origin."""
    draft = translation.draft()
    folder = Path("profiles")
    folder.mkdir(exist_ok=True)
    short, full = render_short(draft, "A title.", "show"), render(draft, "A title.", None)
    for name, text in {"short": short, "full": full}.items():
        (folder / f"{name}.toml").write_text(text)
    loaded = load_profile(folder / "short.toml")
    assert loaded.profile == load_profile(folder / "full.toml").profile
    for key, value in translation.values.items():
        table, field = key.split(".")
        if isinstance(value, bool | int | float) or key in ("dpo.loss", "dpo.reduction"):
            assert getattr(getattr(loaded.profile, table), field) == value, key
        origin = translation.origins.get(key)
        assert origin or translation.notes[key] == FILL_IN, key
        if origin:
            lines = [line for line in short.splitlines() if line.startswith(f"{field} = ")]
            assert any(line.endswith(f"  # {origin}") for line in lines), key
    for line in translation.report():
        assert f"# {line}" in short


def test_trl() -> None:
    translation = of_file("trl.yaml")
    assert from_file(translation) == {
        "model.weights": "hf:Qwen/Qwen2-0.5B-Instruct@refs/pr/7",
        "data.data_path": "hf:trl-lib/ultrafeedback_binarized:default/train",
        "data.max_seq_len": 1536,
        "data.max_prompt_len": 512,
        "data.truncation": "prompt_start",
        "data.num_workers": 4,
        "dpo.loss": ["sigmoid", "bco_pair", "sft"],
        "dpo.loss_weights": [0.8, 0.2, 1.0],
        "dpo.beta": 0.05,
        "dpo.ld_alpha": 0.5,
        "dpo.reduction": "sum",
        "train.epochs": 1,
        "train.batch_size": 2,
        "train.accumulation_steps": 8,
        "lora.rank": 32,
        "lora.alpha": 16,
        "train.learning_rate": 5e-7,
        "train.schedule": "cosine",
        "train.optimizer": "adamw8bit",
        "train.warmup_iters": 80,
        "train.weight_decay": 0.1,
        "train.decay_norms_and_biases": False,
        "train.grad_clip": 0.5,
        "train.seed": 7,
        "train.dtype": "bfloat16",
        "train.activation_checkpointing": True,
        "train.log_interval": 200,
        "train.save_interval": 800,
        "eval.path": "hf:trl-lib/ultrafeedback_binarized:default/test",
        "eval.interval": 400,
        "eval.keep_best": True,
        "track.use_wandb": True,
        "track.use_tensorboard": True,
        "track.wandb_project": "uf-dpo",
    }
    assert names(translation.missing) == {
        *("output_dir", "run_name"),
    }
    assert translation.unknown == ["frobnicate = 3"]
    assert names(translation.without_effect) == {
        "push_to_hub",
        "remove_unused_columns",
        "eval_strategy",
    }
    assert not any("lr_scheduler" in each for each in translation.differences)
    check_profile(translation)


def test_llama_factory() -> None:
    Path("data").mkdir()
    shutil.copy(FILES / "dataset_info.json", "data")
    translation = of_file("llama_factory.yaml")
    assert from_file(translation) == {
        "model.weights": "hf:meta-llama/Meta-Llama-3-8B-Instruct",
        "data.data_path": ["../data/dpo_en_demo.json", "hf:me/my-pairs:en/train"],
        "data.columns": {"conversations": "talk"},
        "data.format": "sharegpt",
        "data.max_seq_len": 2048,
        "data.num_workers": 16,
        "dpo.beta": 0.2,
        "dpo.loss": ["sigmoid", "sft"],
        "dpo.loss_weights": [1.0, 0.25],
        "dpo.label_smoothing": 0.1,
        "dpo.reduction": "sum",
        "train.epochs": 3,
        "train.batch_size": 1,
        "train.accumulation_steps": 8,
        "train.learning_rate": 5e-6,
        "train.schedule": "cosine",
        "train.warmup_ratio": 0.1,
        "train.dtype": "bfloat16",
        "train.log_interval": 80,
        "train.save_interval": 4000,
        "eval.fraction": 0.1,
        "eval.interval": 4000,
        "eval.patience": 3,
        "eval.keep_best": True,
        "launch.timeout_seconds": 180000000.0,
        "lora.rank": 8,
        "lora.target_modules": "all-linear",
    }
    assert names(translation.missing) == {
        *("trust_remote_code", "template", "max_samples", "output_dir"),
    }
    assert not translation.unknown
    check_profile(translation)


def test_axolotl() -> None:
    translation = of_file("axolotl.yaml")
    assert from_file(translation) == {
        "model.weights": "hf:meta-llama/Llama-3.2-1B",
        "data.data_path": "hf:fozziethebeat/alpaca_messages_2k_dpo_test",
        "data.columns": {"messages": "conversation"},
        "data.format": "messages",
        "data.max_seq_len": 4096,
        "data.truncation": "drop",
        "dpo.loss": "sigmoid",
        "dpo.beta": 0.3,
        "dpo.reduction": "sum",
        "train.epochs": 4,
        "train.batch_size": 2,
        "train.accumulation_steps": 4,
        "train.learning_rate": 2e-4,
        "train.schedule": "cosine",
        "train.warmup_iters": 40,
        "train.optimizer": "adamw8bit",
        "train.weight_decay": 0.0,
        "train.dtype": "auto",
        "train.tf32": True,
        "train.activation_checkpointing": True,
        "train.log_interval": 4,
        "eval.fraction": 0.05,
        "track.use_wandb": True,
        "track.wandb_project": "tiny",
        "lora.rank": 32,
        "lora.alpha": 16,
        "lora.dropout": 0.0,
        "lora.target_modules": "all-linear",
        "model.quantization": "int8",
    }
    assert {
        "evals_per_epoch",
        "special_tokens.pad_token",
    } <= (names(translation.missing))
    assert not translation.unknown
    assert not any("message_property_mappings" in each for each in translation.differences)
    check_profile(translation)


def test_swift_script() -> None:
    translation = of_file("swift.sh")
    assert from_file(translation) == {
        "model.weights": "hf:Qwen/Qwen2.5-7B-Instruct",
        "data.data_path": "hf:hjh0119/shareAI-Llama3-DPO-zh-en-emoji",
        "data.max_seq_len": 2048,
        "data.num_workers": 4,
        "dpo.loss": ["sigmoid", "sft"],
        "dpo.loss_weights": [1.0, 0.1],
        "dpo.reduction": "sum",
        "train.epochs": 1,
        "train.batch_size": 1,
        "train.accumulation_steps": 8,
        "train.learning_rate": 1e-5,
        "train.warmup_iters": 40,
        "train.dtype": "bfloat16",
        "train.log_interval": 40,
        "train.save_interval": 800,
        "eval.fraction": 0.01,
        "eval.interval": 800,
        "launch.nproc_per_node": 2,
    }
    # Text after NAME#1000 on the line is no comment.
    assert {"deepspeed", "save_total_limit", "dataloader_num_workers"} <= names(translation.missing)
    assert any("all rows are used, not 1000" in each for each in translation.differences)
    assert any("ModelScope" in each for each in translation.differences)
    check_profile(translation)


def test_torchtune() -> None:
    translation = of_file("torchtune.yaml")
    found = from_file(translation)
    assert Path("profiles", found.pop("model.weights")).resolve() == Path(
        "/tmp/Meta-Llama-3.1-8B-Instruct"
    )
    assert found == {
        "data.data_path": "hf:lvwerra/stack-exchange-paired",
        "data.columns": {"prompt": "question", "chosen": "response_j", "rejected": "response_k"},
        "data.format": "plain",
        "data.max_seq_len": 1024,
        "data.truncation": "end",
        "data.shuffle": True,
        "dpo.loss": "sigmoid",
        "dpo.beta": 0.05,
        "dpo.reduction": "sum",
        "train.epochs": 1,
        "train.batch_size": 4,
        "train.accumulation_steps": 8,
        "train.learning_rate": 1e-6,
        "train.schedule": "cosine",
        "train.warmup_iters": 800,
        "train.optimizer": "adamw",
        "train.weight_decay": 0.05,
        "train.grad_clip": 2.0,
        "train.seed": 5,
        "train.device": "cuda",
        "train.dtype": "bfloat16",
        "train.compile": False,
        "train.activation_checkpointing": True,
        "train.log_interval": 8,
    }
    assert not translation.missing
    assert not translation.unknown
    check_profile(translation)


def test_open_instruct() -> None:
    translation = of_file("open_instruct.yaml")
    assert from_file(translation) == {
        "model.weights": "hf:allenai/Llama-3.1-Tulu-3-8B-SFT",
        "data.data_path": [
            "hf:allenai/llama-3.1-tulu-3-8b-preference-mixture",
            "hf:allenai/tulu-3-wildchat-reused-on-policy-8b",
        ],
        "data.mixture_weights": [1.0, 0.5],
        "data.max_seq_len": 2048,
        "data.truncation": "end",
        "data.num_workers": 16,
        "dpo.loss": "sigmoid_norm",
        "dpo.beta": 5.0,
        "dpo.reduction": "mean",
        "train.epochs": 1,
        "train.batch_size": 1,
        "train.accumulation_steps": 16,
        "train.learning_rate": 5e-7,
        "train.schedule": "linear",
        "train.warmup_ratio": 0.1,
        "train.weight_decay": 0.0,
        "train.activation_checkpointing": True,
        "train.log_interval": 16,
        "train.save_interval": 16000,
        "track.use_wandb": True,
    }
    assert names(translation.missing) == {
        *("clip_grad_norm", "use_flash_attn", "output_dir"),
    }
    assert not translation.unknown
    assert any(each.startswith("tokenizer_name = ") for each in translation.without_effect)
    check_profile(translation)


@pytest.mark.parametrize("suffix", ["py", "ipynb"])
def test_unsloth(suffix: str) -> None:
    if suffix == "py":
        translation = of_file("unsloth_cell.txt", "cell.py")
    else:
        source = (FILES / "unsloth_cell.txt").read_text().splitlines(keepends=True)
        cells = [
            {"cell_type": "markdown", "source": ["# DPO"]},
            {"cell_type": "code", "source": source},
        ]
        Path("book.ipynb").write_text(json.dumps({"cells": cells, "nbformat": 4}))
        translation = of("book.ipynb")
    assert from_file(translation) == {
        "model.weights": "hf:unsloth/zephyr-sft-bnb-4bit",
        "data.data_path": "hf:HuggingFaceH4/ultrafeedback_binarized:default/train_prefs",
        "data.max_seq_len": 1024,
        "data.max_prompt_len": 512,
        "data.truncation": "prompt_start",
        "dpo.beta": 0.1,
        "dpo.reduction": "sum",
        "lora.rank": 64,
        "lora.alpha": 64,
        "lora.target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"],
        "model.quantization": "nf4",
        "train.epochs": 3,
        "train.batch_size": 2,
        "train.accumulation_steps": 4,
        "train.learning_rate": 5e-6,
        "train.schedule": "linear",
        "train.optimizer": "adamw8bit",
        "train.warmup_ratio": 0.1,
        "train.weight_decay": 0.0,
        "train.seed": 42,
        "train.log_interval": 4,
    }
    assert "max_seq_length" in names(translation.missing)
    assert {"fp16", "bf16", "train_dataset"} <= names(translation.unread)
    assert not translation.unknown
    check_profile(translation)


@pytest.mark.filterwarnings("error")
def test_python_is_never_run() -> None:
    Path("cell.py").write_text(
        "from trl import DPOConfig\nopen('ran', 'w')\nx = '\\d' if 1or 2 else 3\n"
        "DPOConfig(beta=__import__('os').system('touch ran'), seed=7)\n"
    )
    translation = of("cell.py")
    assert not Path("ran").exists()
    assert translation.values["train.seed"] == 7
    assert names(translation.unread) == {"beta"}


@pytest.mark.parametrize("use_trainer", [True, False], ids=["in trainer/", "without"])
def test_minimind_version_3(use_trainer: bool, here: Path) -> None:
    checkout(here, use_trainer)
    translation = of(
        "torchrun --nproc_per_node 2 train_dpo.py --save_weight mine --from_weight full_sft"
        " --use_compile 1 --use_wandb --hidden_size 768 --beta 0.2 --use_moe 0"
    )
    assert from_file(translation) == {
        "model.weights": "full_sft_768.pth",
        "model.hidden_size": 768,
        "model.use_moe": False,
        "dpo.beta": 0.2,
        "train.compile": True,
        "export.prefix": "mine",
        "launch.nproc_per_node": 2,
        "track.use_swanlab": True,
    }
    start = load_profile(Path("minimind3")).profile
    assert translation.values["train.learning_rate"] == start.train.learning_rate
    assert translation.values["train.epochs"] == start.train.epochs
    assert translation.values["dpo.reduction"] == "sum"
    if use_trainer:  # the script's own paths are relative to its folder
        assert translation.values["model.tokenizer"] == "../model"
        assert translation.values["data.data_path"] == "../dataset/dpo.jsonl"
    assert bool(translation.draft().missing) is not use_trainer
    check_profile(translation)


def checkout(folder: Path, use_trainer: bool) -> None:
    for name in ("out", "model", "dataset", "trainer") if use_trainer else ():
        (folder / name).mkdir()
    if use_trainer:
        (folder / "dataset/dpo.jsonl").write_text("{}\n")


def test_minimind_version_2() -> None:
    translation = of(
        "python train_dpo.py --out_dir out --epochs 3 --learning_rate 2e-8 --ddp --use_wandb"
        " --warmup_iters 5 --log_interval 20 --dtype float16 --num_workers 2"
    )
    found = from_file(translation)
    assert found == {
        "model.out_dir": "../out",
        "data.num_workers": 2,
        "train.epochs": 3,
        "train.learning_rate": 2e-8,
        "train.warmup_iters": 5,
        "train.log_interval": 20,
        "train.dtype": "float16",
        "track.use_wandb": True,
    }
    start = load_profile(Path("dense")).profile
    assert translation.values["dpo.reduction"] == start.dpo.reduction == "mean"
    assert translation.values["train.schedule"] == start.train.schedule == "minimind2"
    check_profile(translation)


@pytest.mark.parametrize("tokenizer", ["model", "model/minimind_tokenizer"])
def test_minimind_with_its_script_at_the_top(tokenizer: str, here: Path) -> None:
    """Older checkouts have no trainer/; a sibling of the checkout is not theirs."""
    for folder in ("out", tokenizer, "dataset", "../out", "../model", "../dataset"):
        Path(folder).mkdir(parents=True)
    for name in ("train_dpo.py", "dataset/dpo.jsonl", "../dataset/dpo.jsonl"):
        Path(name).write_text("{}\n")
    translation = of("torchrun --nproc_per_node 2 train_dpo.py --epochs 3 --use_wandb")
    for key, place in (
        ("model.out_dir", "../out"),
        ("model.tokenizer", f"../{tokenizer}"),
        ("data.data_path", "../dataset/dpo.jsonl"),
    ):
        assert translation.values[key] == place
    assert from_file(translation) == {
        "train.epochs": 3,
        "launch.nproc_per_node": 2,
        "track.use_wandb": True,
    }
    assert not translation.draft().missing
    assert not translation.differences
    assert translation.values["train.schedule"] == "minimind2"
    check_profile(translation)
    Path("run.sh").write_text("python train_dpo.py --data_path ./dataset/dpo.jsonl --use_moe 1\n")
    script = of("run.sh")
    assert script.values["data.data_path"] == "../dataset/dpo.jsonl"
    assert "minimind's default (moe)" in script.origins.values()


def test_minimind_of_october_2025_is_a_guess() -> None:
    line = "python train_dpo.py --from_weight full_sft --hidden_size 512"
    assert "read as the script of version 3" in of(line).differences[0]
    translation = of(line, template="minimind2-2510")
    assert not translation.differences
    assert translation.values["model.weights"] == "full_sft_512.pth"
    assert translation.values["dpo.reduction"] == "mean"


def test_trl_command_lines(here: Path) -> None:
    Path("base").mkdir()
    Path("pairs.yaml").write_text("dataset_name: me/pairs\nbeta: 0.5\nloss_type: hinge\n")
    translation = of(
        "accelerate launch --num_processes 4 --config_file zero3.yaml trl dpo --config pairs.yaml"
        " --model_name_or_path base --beta=0.25 --loss_type sigmoid bco_pair --bf16"
    )
    found = from_file(translation)
    assert found["model.weights"] == "../base"
    assert found["data.data_path"] == "hf:me/pairs"
    assert found["dpo.beta"] == 0.25
    assert found["dpo.loss"] == ["sigmoid", "bco_pair"]
    assert found["train.dtype"] == "bfloat16"
    assert found["launch.nproc_per_node"] == 4
    assert names(translation.unknown) == {"config_file"}


def test_the_length_is_capped_at_the_positions_of_the_model() -> None:
    Path("short").mkdir()
    Path("short/config.json").write_text('{"max_position_embeddings": 512}')
    text = "stage: dpo\nmodel_name_or_path: short\ndataset: me/pairs\ncutoff_len: 2048\n"
    translation = of_yaml(text)
    assert translation.values["data.max_seq_len"] == 512
    assert translation.origins["data.max_seq_len"] == (
        "the model has 512 positions; cutoff_len = 2,048"
    )
    assert translation.differences == [
        "cutoff_len = 2,048: the model has 512 positions, so data.max_seq_len = 512"
    ]
    check_profile(translation)
    kept = of_yaml(text.replace("2048", "512"))
    assert kept.origins["data.max_seq_len"] == "llama-factory: cutoff_len"
    assert not kept.differences
    # A prompt that no longer fits is listed; a length that the file leaves open is capped, too.
    named = translated("trl", {"max_prompt_length": 768, "max_length": 1024}, Path("profiles"))
    assert named.values["data.max_prompt_len"] == 768
    for tool, length in (("trl", {"max_prompt_length": 768, "max_length": 1024}), ("swift", {})):
        name = "model" if tool == "swift" else "model_name_or_path"
        found = translated(tool, {name: "short", **length}, Path("profiles"))
        assert found.values["data.max_seq_len"] == 512
        assert "data.max_prompt_len" not in found.values
        check_profile(found)
    weights = translated("trl", {"model_name_or_path": "elsewhere", "max_length": 4096})
    assert weights.values["data.max_seq_len"] == 4096


def test_the_length_is_capped_for_a_model_in_the_cache(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("config.json").write_text('{"max_position_embeddings": 256}')
    module = "dpo_cli.profile.foreign.model_facts.cached"
    monkeypatch.setattr(module, {"hf:me/base@v1": here}.get)
    named = {"model_name_or_path": "me/base", "model_revision": "v1"}
    assert translated("trl", named).values["data.max_seq_len"] == 256
    assert translated("trl", {"model_name_or_path": "me/base"}).values["data.max_seq_len"] == 1024


def test_defaults_of_a_tool_are_written() -> None:
    translation = of_yaml("model_name_or_path: me/base\ndataset_name: me/pairs\nloss_type: ipo\n")
    assert translation.values["train.learning_rate"] == 1e-6
    assert translation.values["train.epochs"] == 3
    assert translation.values["train.batch_size"] == 8
    assert translation.origins["train.batch_size"] == ("trl's default: per_device_train_batch_size")
    assert translation.values["dpo.reduction"] == "mean"
    assert translation.values["train.schedule"] == "linear"
    assert translation.values["train.weight_decay"] == 0.0


@pytest.mark.parametrize(
    ("tool", "values", "loss"),
    [
        ("trl", {"loss_type": "hinge", "rpo_alpha": 0.5}, ["hinge", "sft"]),
        ("swift", {"rpo_alpha": 0.5, "rlhf_type": "dpo"}, ["sigmoid", "sft"]),
        ("axolotl", {"rpo_alpha": 0.5, "rl": "dpo"}, ["sigmoid", "sft"]),
        ("axolotl", {"rl": "dpo", "dpo_loss_type": ["apo_zero"]}, "apo_zero"),
        ("llama-factory", {"pref_ftx": 0.5, "pref_loss": "simpo"}, ["simpo", "sft"]),
        ("open-instruct", {"dpo_loss_type": "simpo"}, "simpo"),
        ("torchtune", {"loss._component_": "torchtune.rlhf.loss.SimPOLoss"}, "simpo"),
    ],
)
def test_losses(tool: str, values: dict[str, Any], loss: Any) -> None:
    assert translated(tool, values).values["dpo.loss"] == loss


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_train_epochs", 0.5),
        ("learning_rate", "fast"),
        ("beta", 0),
        ("beta", ".inf"),
        ("per_device_train_batch_size", -1),
        ("loss_type", "kto"),
        ("save_steps", 0.1),
        ("seed", True),
        ("bf16", "perhaps"),
        ("dataset_name", 3),
        ("dataset_name", "two\nlines"),
        ("model_name_or_path", "a\0b"),
        ("max_prompt_length", 4096),
        ("f_divergence_type", "unheard"),
        ("early_stopping_patience", 3),  # without evaluations
        ("report_to", ["comet_ml"]),
    ],
)
def test_a_value_that_fits_no_key_is_listed(name: str, value: Any) -> None:
    translation = translated("trl", {name: value})
    assert any(name in entry for entry in translation.missing)
    check_profile(translation)


def test_dataset_info() -> None:
    shutil.copy(FILES / "dataset_info.json", ".")
    questions = translated("llama-factory", {"dataset": "questions"})
    assert questions.values["data.data_path"] == "../questions.json"
    assert questions.values["data.format"] == "alpaca"
    assert questions.values["data.columns"] == {
        "instruction": "question",
        "chosen": "best",
        "rejected": "worst",
    }
    assert any(
        'no "ranking"' in each
        for each in translated("llama-factory", {"dataset": "plain_sft"}).differences
    )
    unknown = translated("llama-factory", {"dataset": "nowhere"})
    assert unknown.notes["data.data_path"] == FILL_IN
    assert unknown.missing[-1].startswith('dataset = "nowhere": ') or any(
        entry.startswith('dataset = "nowhere": ') for entry in unknown.missing
    )


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({"type": "chatml.intel"}, {"format": "plain", "columns": {"prompt": "question"}}),
        ({"type": "llama3.argilla"}, {"format": "swift"}),
        ({"type": "chatml.argilla_chat"}, {"format": "minimind"}),
        ({"type": "llama3.icr"}, {"format": "plain", "columns": {"prompt": "input"}}),
        ({"type": "chatml.ultra"}, {"format": "ultrafeedback"}),
        ({"type": "chat_template.default"}, {}),
        (
            {"type": {"field_prompt": "q", "field_chosen": "good", "field_rejected": "bad"}},
            {"format": "plain", "columns": {"prompt": "q", "chosen": "good", "rejected": "bad"}},
        ),
    ],
)
def test_types_of_axolotl(entry: dict[str, Any], expected: dict[str, Any]) -> None:
    found = translated("axolotl", {"datasets": [{"path": "me/pairs", **entry}]})
    data = {key.split(".")[1]: value for key, value in found.values.items() if key[:5] == "data."}
    assert {key: data[key] for key in ("format", "columns") if key in data} == expected
    assert data["data_path"] == "hf:me/pairs"


def test_the_tool_can_be_named_and_is_asked_for() -> None:
    Path("few.yaml").write_text("per_device_train_batch_size: 2\nlearning_rate: 1e-6\n")
    with pytest.raises(UsageError, match="may belong to two tools") as caught:
        read_foreign("few.yaml")
    assert "trl" in caught.value.remedy
    assert "swift" in caught.value.remedy
    assert read_foreign("swift:few.yaml").tool.name == "swift"
    Path("none.yaml").write_text("frobnicate: 2\n")
    with pytest.raises(UsageError, match="no known tool"):
        read_foreign("none.yaml")


LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n"
    for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
BAD: dict[str, tuple[str, bytes]] = {
    "billion laughs": ("x.yaml", LAUGHS.encode()),
    "cycle": ("x.yaml", b"beta: &a [*a]\n"),
    "python object": ("x.yaml", b"beta: !!python/object/apply:os.system ['touch ran']\n"),
    "deep": ("x.yaml", b"beta: " + b"[" * 50_000),
    "no mapping": ("x.yaml", b"- beta\n"),
    "empty": ("x.yaml", b""),
    "tab": ("x.yaml", b"a:\n\t- b: [\n"),
    "control character": ("x.yaml", b"a: \x00\n"),
    "not UTF-8": ("x.yaml", b"\xff\xfe\x00"),
    "a huge number": ("x.yaml", b"beta: " + b"9" * 5_000 + b"\n"),
    "a wrong date": ("x.yaml", b"beta: 2026-99-99\n"),
    "too large": ("x.yaml", b"#" * (1 << 20) + b"#\n"),
    "two commands": ("x.sh", b"trl dpo --beta 1\ntrl sft --beta 2\n"),
    "an open quote": ("x.sh", b"trl dpo --beta 'a\n"),
    "no notebook": ("x.ipynb", b"{}"),
    "no Python": ("x.py", b"def (:\n"),
    "deep Python": ("x.py", b"x = " + b"(" * 5_000),
    "no call": ("x.py", b"x = 1\n"),
    "words": ("x.txt", b"some words\n"),
}


@pytest.mark.parametrize("case", list(BAD))
def test_bad_files_are_errors_with_a_remedy(case: str) -> None:
    name, content = BAD[case]
    Path(name).write_bytes(content)
    with pytest.raises(UsageError) as caught:
        of(name)
    assert caught.value.remedy
    assert len(caught.value.message) < 400
    assert not Path("ran").exists()


@pytest.mark.parametrize("source", ["nothing.yaml", "some words", "", "trl:", "a\0b", "x" * 20_000])
def test_missing_files_are_errors_with_a_remedy(source: str) -> None:
    with pytest.raises(UsageError) as caught:
        of(source)
    assert caught.value.remedy


def test_no_value_can_write_a_line_of_the_profile() -> None:
    nasty = 'x"\n[train]\nepochs = 9\n#\x7f\ud800'
    translation = translated("trl", {nasty: nasty, "run_name": nasty, "loss_type": nasty})
    check_profile(translation)
    assert load_profile(Path("profiles/short.toml")).profile.train.epochs == 3


def test_a_name_that_occurs_twice_is_reported() -> None:
    translation = of_yaml("loss_type: hinge\nbeta: 0.1\nbeta: 0.2\nmax_length: 64\n")
    assert translation.values["dpo.beta"] == 0.2
    assert translation.unread == ["beta: written more than once; the last value is used"]


def test_a_variable_of_the_shell_is_not_a_value() -> None:
    translation = of("trl dpo --model_name_or_path $MODEL --beta 0.2")
    assert any("variable of the shell" in entry for entry in translation.missing)
    assert translation.notes["model.weights"] == FILL_IN


def test_nothing_is_dropped() -> None:
    """Each setting of each file is in one of the lists, or beside a key."""
    Path("data").mkdir()
    shutil.copy(FILES / "dataset_info.json", "data")
    for path in (*sorted(FILES.iterdir()), *sorted(DOCUMENTED.iterdir())):
        if path.suffix not in (".yaml", ".sh"):
            continue
        settings = read_foreign(str(path))
        translation = translate(settings, Path.cwd() / "profiles")
        draft = translation.draft()
        text = " ".join([*draft.remarks, *draft.origins.values()])
        parts = {name for name, rule in settings.tool.rules.items() if rule.is_part}
        for name in settings.values:
            if name not in parts:
                assert name in text, (path.name, name)


@pytest.mark.parametrize("path", sorted(DOCUMENTED.iterdir()), ids=lambda path: path.stem)
def test_documented_examples_have_no_unknown_setting(path: Path) -> None:
    name = "cell.py" if path.suffix == ".txt" else path.name
    shutil.copy(path, name)
    translation = of(name)
    assert not translation.unknown
    assert len(translation.setters) >= 3
    check_profile(translation)


def test_a_reference_that_is_the_starting_weights_is_left_out() -> None:
    settings = read_foreign(str(DOCUMENTED / "torchtune.yaml"))
    translation = translate(settings, Path("profiles"), model="hf:me/mine")
    assert translation.values["model.weights"] == "hf:me/mine"
    assert "model.reference" not in translation.values
    name = "ref_checkpointer.checkpoint_dir"
    assert f"{name} (the starting weights, as here)" in translation.without_effect
    other = translated("trl", {"model_name_or_path": "a/b"})
    assert not any("starting weights" in each for each in other.without_effect)


def test_each_default_is_a_setting_of_its_tool() -> None:
    for tool in TOOLS.values():
        assert tool.defaults({}).keys() <= tool.rules.keys(), tool.name
        assert tool.marks


@pytest.mark.parametrize("name", ["a" * 300, "~no-such-user/x"])
def test_a_name_that_no_file_has(name: str) -> None:
    translation = translated("trl", {"model_name_or_path": name})
    assert name in translation.values["model.weights"]


@pytest.mark.parametrize("field", ["columns", "tags"])
def test_a_damaged_entry_of_dataset_info(field: str) -> None:
    entry = {"file_name": "x.json", "ranking": True, "formatting": "sharegpt", field: [1]}
    Path("dataset_info.json").write_text(json.dumps({"mine": entry}))
    translation = translated("llama-factory", {"dataset": "mine"})
    assert any(entry.startswith('dataset = "mine": must be') for entry in translation.missing)
    assert translation.notes["data.data_path"] == FILL_IN


def test_trl_evaluates_the_split_test_by_default() -> None:
    named = {"dataset_name": "me/pairs", "eval_strategy": "steps"}
    assert translated("trl", named).values["eval.path"] == "hf:me/pairs:default/test"
    assert "eval.path" not in translated("trl", {"dataset_name": "me/pairs"}).values


def test_training_pairs_are_never_held_out(here: Path) -> None:
    Path("pairs.jsonl").write_text("")
    named = {"dataset_name": "pairs.jsonl", "eval_strategy": "steps", "dataset_test_split": "test"}
    translation = translated("trl", named)
    assert "eval.path" not in translation.values
    assert {"dataset_test_split", "eval_strategy"} <= names(translation.missing)


def test_trl_trains_without_dropout_unless_it_is_asked_to() -> None:
    adapter = {"use_peft": "true", "lora_r": "8"}
    assert translated("trl", adapter).values["lora.dropout"] == 0.0
    kept = translated("trl", {**adapter, "disable_dropout": "false"})
    assert kept.values["lora.dropout"] == 0.05


@pytest.mark.parametrize(
    ("model", "targets"),
    [
        ("Qwen/Qwen2-0.5B-Instruct", ["q_proj", "v_proj"]),
        ("HuggingFaceTB/SmolLM2-135M", ["q_proj", "v_proj"]),
        ("meta-llama/Llama-3.2-1B", ["q_proj", "v_proj"]),
        ("meta-llama/Llama-3.2-11B-Vision", None),
        ("Qwen/Qwen2-VL-7B", None),
        ("Qwen/Qwen1.5-MoE-A2.7B", None),
        ("Qwen/Qwen2-57B-A14B", None),
        ("me/unknown", None),
    ],
)
def test_the_layers_are_those_of_peft(model: str, targets: list[str] | None) -> None:
    translation = translated("trl", {"model_name_or_path": model, "use_peft": True})
    assert translation.values.get("lora.target_modules") == targets
    assert any("peft's default" in each for each in translation.differences)


def test_a_misspelt_setting_names_the_one_that_is_meant_and_its_default() -> None:
    [unknown] = translated("trl", {"lerning_rate": 5e-6, "beta": 0.1}).unknown
    assert unknown == "lerning_rate = 5e-6: did you mean learning_rate, now 1e-6 (default)?"
    misspelt = translated("axolotl", {"base_model": "me/base", "learning_rat": 1e-5})
    assert misspelt.unknown == ["learning_rat = 1e-5: did you mean learning_rate?"]
    assert any(each.startswith("learning_rate: ") for each in misspelt.missing)


def test_a_checkout_of_version_2_is_recognized_by_its_tokenizer(
    shared: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(shared / "tokenizer/minimind2", here / "model")
    (here / "trainer").mkdir()
    monkeypatch.chdir(here / "trainer")
    values = {"epochs": 2, "hidden_size": 512, "max_seq_len": 1024, "use_wandb": True}
    translation = translated("minimind", values, here / "profiles")
    assert translation.values["track.use_wandb"] is True
    [guess] = [each for each in translation.differences if each.startswith("read as")]
    assert guess.startswith("read as the script of version 2 (dense); for the one of October 2025")


def test_a_mistyped_file_names_the_one_that_is_there() -> None:
    Path("dpo.yml").write_text("rl: dpo\n")
    with pytest.raises(UsageError, match=r"of a known tool; did you mean dpo\.yml"):
        of("dpo.yaml")
