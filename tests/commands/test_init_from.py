"""Tests of `dpo init --from`: settings of each tool train a tiny model, TRL's with equal losses."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.commands.conftest import Cli
from tests.support.family_runs import MODEL as TINY
from tests.support.family_runs import make
from tests.support.trl_run import MODEL, SETTINGS, STEPS, write_pairs
from tests.support.worker_runs import train_profile

DOCUMENTED = Path(__file__).parents[1] / "profile/documented"
EXAMPLES = {
    "trl": "trl.yaml",
    "llama-factory": "llama_factory.yaml",
    "axolotl": "axolotl.yaml",
    "swift": "swift.sh",
    "torchtune": "torchtune.yaml",
    "open-instruct": "open_instruct.yaml",
    "unsloth": "unsloth_cell.txt",
}
"""Examples as the documentation of the tools has them."""
MINIMIND = "python train_dpo.py --epochs 1 --batch_size 4 --learning_rate 4e-8 --max_seq_len 1024"


def test_losses_are_those_of_trl(
    shared: Path, dpo: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The losses of ten steps equal those of TRL's trainer, recorded by benchmarks/trl_run.py."""
    recorded: dict[str, Any] = json.loads(Path(__file__).with_name("trl_losses.json").read_text())
    monkeypatch.chdir(tmp_path)
    write_pairs(shared, Path("pairs.jsonl"))
    files = {"model_name_or_path": str(shared / MODEL), "train_file": "pairs.jsonl"}
    Path("trl.yaml").write_text(yaml.safe_dump({**files, **SETTINGS}))
    code, _, err = dpo("init", "moved", "--from", "trl.yaml")
    assert (code, err) == (0, "")
    run = train_profile(tmp_path / "runs", "trl", "profiles/moved.toml", **{"train.device": "cpu"})
    losses = recorded["losses"]
    assert len(losses) == len(run.losses) == STEPS
    assert max(losses) - min(losses) > 0.3  # so the policy changes a lot
    assert run.losses == pytest.approx(losses, abs=1e-4)


def test_the_examples_of_all_tools_train_a_tiny_model(
    shared: Path, dpo: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """--model and --data replace the tools' own models and data."""
    make(tmp_path, "llama")
    monkeypatch.chdir(tmp_path)
    cheap = {
        "data.columns": "{}",
        "data.format": "auto",
        "eval.path": "dpo.jsonl",
        "eval.fraction": 0.0,
        "launch.nproc_per_node": 1,
        "train.accumulation_steps": 2,
        "train.batch_size": 2,
        "train.device": "cpu",
        "train.dtype": "float32",
        "train.epochs": 1,
        "train.learning_rate": 1e-4,
    }
    seed = {
        "model.hidden_size": 64,
        "model.num_hidden_layers": 2,
        "model.tokenizer": shared / "tokenizer/minimind2",
    }
    weights = shared / "golden/train/seed/full_sft_64.pth"
    shutil.copy(DOCUMENTED / EXAMPLES["unsloth"], "unsloth.py")
    places = {**{tool: DOCUMENTED / file for tool, file in EXAMPLES.items()}}
    places["unsloth"] = Path("unsloth.py")
    cases = {tool: (f"{tool}:{place}", TINY, {}) for tool, place in places.items()}
    cases["minimind"] = (MINIMIND, weights, seed)
    for tool, (source, model, more) in cases.items():
        named = ("--model", str(model), "--data", "dpo.jsonl")
        code, _, err = dpo("init", tool, "--from", source, *named)
        assert (code, err) == (0, ""), tool
        run = train_profile(tmp_path / "runs", tool, f"profiles/{tool}.toml", **cheap, **more)
        assert len(run.steps) == 4, tool
        assert all(map(math.isfinite, run.losses)), tool
        assert run.losses[0] != run.losses[-1], tool
