"""Inputs of a small run on the golden data."""

from __future__ import annotations

import json
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


def twice_asked(shared: Path, folder: Path) -> Path:
    """Write the 27 golden pairs and a second pair for each prompt; return the file."""
    lines = (shared / "golden/data/train27.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    for row in rows[:]:
        chosen = [*row["chosen"][:-1], {"role": "assistant", "content": "Another answer."}]
        rows.append({"chosen": chosen, "rejected": row["rejected"]})
    path = folder / "twice.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
