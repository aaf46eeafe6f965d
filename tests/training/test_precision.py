"""Half precision is in the forward alone: weights stay float32; the policy begins as reference."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dpo_cli.errors import ExitCode
from dpo_cli.profile.load import load_profile
from dpo_cli.profile.resolved import to_toml
from dpo_cli.run.directory import RunDirectory
from dpo_cli.run.events import Alert
from dpo_cli.training import session
from tests.support.cli import Run

MODELS = {
    "dense": ("seed/full_sft_64.pth", "minimind2"),
    "moe": ("seed/full_sft_64_moe.pth", "minimind2"),
    "minimind3": ("head/full_sft_64.pth", "minimind3"),
    "minimind3-moe": ("head/full_sft_64_moe.pth", "minimind3"),
}


class NeverStopped:
    stop: str | None = None


def train(shared: Path, root: Path, profile: str, dtype: str, **changes: str) -> Run:
    model_weights, tokenizer = MODELS[profile]
    keys = {
        "model.weights": shared / "golden/train" / model_weights,
        "model.hidden_size": 64,
        "model.num_hidden_layers": 2,
        "model.tokenizer": shared / "tokenizer" / tokenizer,
        "data.data_path": shared / "golden/data/train27.jsonl",
        "data.max_seq_len": 128,
        "train.device": "cpu",
        "train.dtype": dtype,
        "train.epochs": 1,
        "train.learning_rate": 1e-4,
        **changes,
    }
    loaded = load_profile(Path(profile), [f"{key}={value}" for key, value in keys.items()])
    directory = RunDirectory.create(root, dtype, to_toml(loaded.profile))
    assert session.train_run(directory.path, NeverStopped()) is ExitCode.DONE
    return Run(directory)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("profile", MODELS)
def test_half_precision_follows_float32(
    shared: Path, tmp_path: Path, profile: str, dtype: str
) -> None:
    full, half = (train(shared, tmp_path, profile, name) for name in ("float32", dtype))
    for run in (full, half):
        assert run.steps[0].metrics["loss"] == pytest.approx(math.log(2), abs=1e-12)
        assert run.steps[0].metrics["kl"] == 0.0
    # float16's first losses are scaled too far and their update is skipped; the weights are then
    # the first ones still. Later a rounding may send a token to another expert, and paths part.
    first = next(n for n, norm in enumerate(half.grad_norms) if math.isfinite(norm))
    assert half.grad_norms[first] == pytest.approx(full.grad_norms[first], rel=0.05)
    assert half.grad_norms[first] != full.grad_norms[first]
    skipped = [event for event in half.events if isinstance(event, Alert)]
    assert len(skipped) == first
    if profile == "dense":
        assert half.losses == pytest.approx(full.losses, abs=1e-3)
    weights = load_file(half.checkpoint / "weights.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    assert any(not torch.equal(t, t.to(getattr(torch, dtype)).float()) for t in weights.values())


def test_only_float16_scales_its_loss(shared: Path, tmp_path: Path) -> None:
    scalers = {
        dtype: json.loads(
            (train(shared, tmp_path, "dense", dtype).checkpoint / "state.json").read_text()
        )
        for dtype in ("float32", "bfloat16", "float16")
    }
    assert not scalers["float32"]["scaler"]
    assert not scalers["bfloat16"]["scaler"]
    assert scalers["float16"]["scaler"]["scale"] > 1
