"""Small model of any family, with pairs and a profile."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

import torch

from dpo_cli import app
from tests.support.cli import REPOSITORY
from tests.support.families import build

MODEL = Path("models/model")
TOKENIZER = REPOSITORY / "demo/tokenizer"
VOCABULARY = 776
"""Larger than the vocabulary of the tokenizer, as in many published models."""
SECONDS = 300.0
"""Longer than a run takes on a busy machine."""
PROFILE = """\
extends = "profiles/mine.toml"
[train]
device = "cpu"
epochs = 1
learning_rate = 1e-4
save_interval = 1
save_min_seconds = 0
[eval]
fraction = 0.25
interval = 0
num_samples = 1
"""


def make(folder: Path, family: str, dtype: torch.dtype = torch.float32) -> Path:
    """Write a model directory in parts, a tokenizer, a few pairs, and the profile of `dpo init`."""
    model = build(family, VOCABULARY).to(dtype)
    model.save_pretrained(folder / MODEL, max_shard_size="80KB")
    for path in TOKENIZER.iterdir():
        shutil.copy(path, folder / MODEL)
    rows = (REPOSITORY / "demo/pairs.jsonl").read_text().splitlines(keepends=True)
    (folder / "dpo.jsonl").write_text("".join(rows[:16]))
    with contextlib.chdir(folder):
        assert app.main(["init", "mine", "--model", str(MODEL)]) == 0
    (folder / "my.toml").write_text(PROFILE)
    return folder / "my.toml"
