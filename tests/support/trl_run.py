"""Inputs of the run whose losses `benchmarks/trl_run.py` records: a tiny model and 40 pairs."""

from __future__ import annotations

import json
from pathlib import Path

STEPS, BATCH = 10, 4
MODEL = "cases/models/llama3"
PAIRS = "data/dpo_judged_train.jsonl"
"""Paths below the folder of test material."""
LONGEST = 400
"""Size limit of a conversation in bytes, so that no pair exceeds the model's 512 positions."""

SETTINGS = {
    "loss_type": "sigmoid",
    "beta": 0.1,
    "max_length": 512,
    "per_device_train_batch_size": BATCH,
    "gradient_accumulation_steps": 1,
    "num_train_epochs": 1,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "cosine_with_min_lr",
    "lr_scheduler_kwargs": {"min_lr_rate": 0.1},
    "weight_decay": 0.01,
    "max_grad_norm": 1.0,
    "train_sampling_strategy": "sequential",
    "bf16": False,
    "seed": 7,
}
"""A file of `trl dpo --config`, apart from the paths. The learning rate is large, so that the
losses of ten steps move."""


def write_pairs(shared: Path, path: Path) -> None:
    """Write the first short pairs of one question, in file order."""

    def is_short(line: str) -> bool:
        row = json.loads(line)
        sides = row["chosen"], row["rejected"]
        sizes = [sum(len(turn["content"].encode()) for turn in side) for side in sides]
        return max(sizes) <= LONGEST and all(len(side) == 2 for side in sides)

    lines = (shared / PAIRS).read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text("".join([*filter(is_short, lines)][: STEPS * BATCH]), encoding="utf-8")
