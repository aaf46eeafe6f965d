"""Settings of the golden runs, and comparisons with the recorded numbers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import Tensor

from dpo_cli.models.loading import read_state_dict
from tests.support.cli import Run

DENSE_LOSS, MOE_LOSS = 2e-5, 1e-4
GRAD_NORM = 1e-4
FINAL_WEIGHTS = 1e-3
FINAL_WEIGHTS_SEED_MOE = 2e-2

PROFILES = {
    ("seed", False): "dense",
    ("seed", True): "moe",
    ("head", False): "minimind3",
    ("head", True): "minimind3-moe",
}
TOKENIZERS = {"seed": "minimind2", "head": "minimind3"}
EMBEDDING = "model.embed_tokens.weight"


def settings(shared: Path, version: str, recorded: Mapping[str, Any]) -> dict[str, Any]:
    """Return the profile keys of a recorded run."""
    arguments = recorded["args"]
    train = shared / "golden" / "train" / version
    return {
        "model.weights": train / recorded["start_checkpoint"],
        "model.hidden_size": 64,
        "model.num_hidden_layers": 2,
        "model.tokenizer": shared / "tokenizer" / TOKENIZERS[version],
        "data.data_path": shared / "golden" / recorded["data"],
        "data.max_seq_len": arguments["max_seq_len"],
        "data.empty_think_ratio": 0.0,
        "dpo.beta": arguments["beta"],
        "train.epochs": arguments["epochs"],
        "train.batch_size": arguments["batch_size"],
        "train.learning_rate": arguments["learning_rate"],
        "train.accumulation_steps": arguments["accumulation_steps"],
        "train.grad_clip": arguments["grad_clip"],
        "train.device": "cpu",
    }


def update_error(shared: Path, version: str, name: str, run: Run, start: str) -> float:
    """Return the distance of our final weights from the recorded ones, relative to the update."""
    train = shared / "golden/train" / version
    final = load_file(train / f"{name}.final_fp32_subset.safetensors")
    before, ours = read_state_dict(train / start), run.weights

    def rows(state: Mapping[str, Tensor], key: str) -> Tensor:
        part = state[EMBEDDING][:200] if key.startswith(EMBEDDING) else state[key]
        return part.double()

    error = sum((rows(ours, key) - value.double()).square().sum() for key, value in final.items())
    update = sum(
        (rows(before, key) - value.double()).square().sum() for key, value in final.items()
    )
    return float((error / update) ** 0.5)


def assert_steps(run: Run, recorded: Mapping[str, Any], *, loss: float, steps: int) -> None:
    """Assert that the first `steps` micro-batches have the recorded losses and learning rates."""
    expected = recorded["steps"][:steps]
    assert run.losses[:steps] == pytest.approx([s["loss"] for s in expected], abs=loss, rel=0)


def assert_grad_norms(run: Run, recorded: Mapping[str, Any], *, updates: int) -> None:
    expected = recorded["grad_norm_before_clip"][:updates]
    assert run.grad_norms[:updates] == pytest.approx(expected, rel=GRAD_NORM)
