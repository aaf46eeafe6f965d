from __future__ import annotations

import json
from pathlib import Path

import pytest

from dpo_cli.training.optim import LearningRate


@pytest.mark.parametrize(("generation", "schedule"), [("seed", "minimind2"), ("head", "minimind3")])
@pytest.mark.parametrize("name", ["dense_lr1e-4_acc1", "dense_lr1e-4_acc2", "dense_lr1e-8_acc1"])
def test_the_golden_rates(golden: Path, generation: str, schedule: str, name: str) -> None:
    recorded = json.loads((golden / f"train/{generation}/{name}.json").read_text())
    steps = recorded["steps"]
    rate = LearningRate(schedule, recorded["args"]["learning_rate"], len(steps), 0)  # type: ignore[arg-type]
    ours = [rate.at(step) for step in range(len(steps))]
    assert ours == pytest.approx([step["lr"] for step in steps], rel=1e-12)


def test_the_ends_of_both_schedules() -> None:
    assert LearningRate("minimind2", 1.0, 100, 0).at(0) == pytest.approx(1.1)
    assert LearningRate("minimind3", 1.0, 100, 0).at(99) == pytest.approx(0.1)


def test_warmup_rises_in_a_line_and_then_leaves_the_schedule_alone() -> None:
    warm, cold = (LearningRate("minimind2", 1.0, 1000, iters) for iters in (4, 0))
    shares = [warm.at(step) / cold.at(step) for step in range(6)]
    assert shares == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0, 1.0])
