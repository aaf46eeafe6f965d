"""Inputs of a small run on the golden data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dpo_cli.compute.device import resolve
from dpo_cli.profile.load import load_profile
from dpo_cli.run.directory import RunDirectory
from dpo_cli.training.inputs import RunInputs, read_inputs


def golden_inputs(shared: Path, profile: str = "dense", **changes: Any) -> RunInputs:
    """Read the inputs of a profile with these changes."""
    keys = {
        "model.weights": shared / "golden/train/seed/full_sft_64.pth",
        "model.hidden_size": 64,
        "model.num_hidden_layers": 2,
        "model.tokenizer": shared / "tokenizer/minimind2",
        "data.data_path": shared / "golden/data/train27.jsonl",
        "train.device": "cpu",
        **changes,
    }
    loaded = load_profile(Path(profile), [f"{key}={value}" for key, value in keys.items()])
    device = resolve(loaded.profile.train.device, loaded.profile.train.dtype)
    return read_inputs(loaded.profile, device, RunDirectory(Path("runs/none")), lambda *_: None)
