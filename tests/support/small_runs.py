"""Runs on the small golden checkpoints: some hundred optimizer steps in a few seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.support.cli import set_options

MANY_SAVES = {"train.save_interval": 3, "train.save_min_seconds": 0, "train.device": "cpu"}


def golden_run(shared: Path, checkpoint: str, moe: bool, **changes: Any) -> list[str]:
    """Return `dpo train` on a golden checkpoint ("seed" or "head"), with 27 pairs and 12 epochs."""
    profile = ("dense", "moe") if checkpoint == "seed" else ("minimind3", "minimind3-moe")
    settings = golden_settings(shared, checkpoint, moe, **changes)
    return ["train", profile[moe], *set_options(settings)]


def golden_settings(shared: Path, checkpoint: str, moe: bool, **changes: Any) -> dict[str, Any]:
    """Return the settings of `golden_run` by dotted key."""
    tokenizer = "minimind2" if checkpoint == "seed" else "minimind3"
    model_weights = shared / f"golden/train/{checkpoint}/full_sft_64{'_moe' if moe else ''}.pth"
    return {
        "model.weights": model_weights,
        "model.hidden_size": 64,
        "model.num_hidden_layers": 2,
        "model.tokenizer": shared / "tokenizer" / tokenizer,
        "data.data_path": shared / "golden/data/train27.jsonl",
        "data.max_seq_len": 128,
        "eval.fraction": 0.2,
        "eval.interval": 25,
        "train.epochs": 12,
        "train.learning_rate": 1e-4,
        **MANY_SAVES,
        **changes,
    }


def small_run(shared: Path, **changes: Any) -> list[str]:
    """Return a command that trains seven steps in a second, after five seconds of imports."""
    return golden_run(shared, "seed", False, **{"train.epochs": 1, "eval.fraction": 0.0, **changes})


def good_settings(shared: Path) -> dict[str, Any]:
    return {
        "model.weights": shared / "golden/train/seed/full_sft_64.pth",
        "model.hidden_size": 64,
        "model.num_hidden_layers": 2,
        "model.tokenizer": shared / "tokenizer/minimind2",
        "data.data_path": shared / "golden/data/train27.jsonl",
        "data.max_seq_len": 64,
        "train.epochs": 1,
        "train.device": "cpu",
    }
