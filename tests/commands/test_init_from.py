"""`dpo init --from`: each tool's settings train a tiny model."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import yaml

from dpo_cli.profile.load import load_profile
from tests.commands.conftest import Cli
from tests.support.cli import Run
from tests.support.cli import dpo as dpo_process
from tests.support.family_runs import make

SETTINGS = {
    "trl": {
        "model_name_or_path": "models/model",
        "train_file": "dpo.jsonl",
        "loss_type": ["sigmoid", "bco_pair"],
        "loss_weights": [0.8, 0.2],
        "beta": 0.2,
        "max_length": 256,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "num_train_epochs": 1,
        "learning_rate": "1e-5",
        "lora_r": 8,
        "weight_decay": 0.0,
    },
}


@pytest.mark.parametrize("tool", list(SETTINGS))
def test_a_tiny_model_trains(
    tool: str, dpo: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path, "llama")
    monkeypatch.chdir(tmp_path)
    Path("config.yaml").write_text(yaml.safe_dump(SETTINGS[tool]))
    code, _, err = dpo("init", "moved", "--from", f"{tool}:config.yaml")
    assert (code, err) == (0, "")
    assert load_profile(Path("profiles/moved.toml")).profile.dpo.losses == {
        "sigmoid": 0.8,
        "bco_pair": 0.2,
    }
    done = dpo_process(*("train", "profiles/moved.toml", "--set", "train.device=cpu"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    run = Run.only(tmp_path)
    losses = run.losses
    assert (len(run.steps), len(losses)) == (4, 8)  # 16 pairs, in steps of 2 x 2
    # Policy and reference agree before the first step: ln 2 for DPO, 2 ln 2 for BCO.
    assert losses[0] == pytest.approx((0.8 + 2 * 0.2) * math.log(2), abs=1e-6)
