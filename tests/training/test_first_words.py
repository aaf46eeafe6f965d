"""Tests of answers of one word: the template's space before the word is part of its token."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from dpo_cli.data.chat import ChatTokenizer
from dpo_cli.errors import ExitCode
from dpo_cli.profile.load import load_profile
from dpo_cli.profile.resolved import to_toml
from dpo_cli.run.directory import RunDirectory
from dpo_cli.training import session
from tests.support.cli import Run
from tests.support.worker_runs import NeverStopped

UPDATES = 60


@pytest.mark.parametrize("name", ["mistral", "llama2"])
def test_one_word_is_learned(shared: Path, tmp_path: Path, name: str) -> None:
    pairs = shared / "cases/57-first-word/yesno.jsonl"
    model_folder = shared / "cases/models" / name
    keys = {
        "model.weights": model_folder,
        "data.data_path": pairs,
        "data.max_seq_len": 256,
        "train.device": "cpu",
        "train.epochs": UPDATES,
        "train.learning_rate": 2e-3,
        "train.save_interval": 1000,
        "train.log_interval": 1000,
    }
    profile = load_profile(Path("hf"), [f"{key}={value}" for key, value in keys.items()]).profile
    directory = RunDirectory.create(tmp_path, "words", to_toml(profile))
    assert session.train_run(directory.path, NeverStopped()) is ExitCode.DONE
    assert Run(directory).steps[-1].step == UPDATES
    tokenizer = ChatTokenizer(model_folder)
    model = AutoModelForCausalLM.from_pretrained(directory.path / "rlhf").eval()
    for line in pairs.read_text().splitlines():
        row = json.loads(line)
        prompt = tokenizer.prompt(row["prompt"])
        right, wrong = (
            int(tokenizer.prompt([*row["prompt"], *row[side]])[len(prompt)])
            for side in ("chosen", "rejected")
        )
        with torch.no_grad():
            logits = model(input_ids=prompt.unsqueeze(0)).logits[0, -1]
        assert float(logits[right] - logits[wrong]) > 5, line
