"""Tests that one command trains on each shape of data on the Hub."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from tests.support.hub import Hub, use_here
from tests.support.hub_shapes import SHAPES
from tests.support.small_runs import golden_settings
from tests.support.worker_runs import train_profile
from tests.support.written import Row


def test_each_shape_trains_with_the_same_losses(
    hub: Hub, shared: Path, rows: list[Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All shapes hold the same pairs, and no pair is cut; the cache trains without a network."""
    pytest.importorskip("pyarrow")
    short = sorted(rows, key=lambda row: len(str(row)))[:8]
    losses = {}

    def train(shape: str, name: str) -> list[float]:
        changes = {
            "data.data_path": name,
            "data.max_seq_len": 1024,
            "eval.fraction": 0.0,
            "train.batch_size": 4,
            "train.epochs": 1,
        }
        settings = golden_settings(shared, "seed", False, **changes)
        run = train_profile(tmp_path / "runs", shape, "dense", **settings)
        assert len(run.steps) == 2
        return run.losses

    for shape, (make, name, _) in SHAPES.items():
        name = name.replace("them/set", f"them/{shape}")
        hub.push(f"them/{shape}", make(short))
        losses[shape] = train(shape, name)
        assert losses[shape][0] == pytest.approx(math.log(2), abs=1e-6)
    assert losses == dict.fromkeys(SHAPES, losses["orca"])
    hub.asked.clear()
    use_here(monkeypatch, hub.url, tmp_path / "home", offline=True)
    assert train("offline", "hf:them/ultrafeedback") == losses["orca"]
    assert not hub.asked
