"""Tests of other losses than DPO's in real runs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from dpo_cli.training.reference import REFERENCE_FILE
from tests.support.cli import Run, dpo
from tests.support.golden_inputs import golden_inputs
from tests.support.small_runs import small_run


def trained(shared: Path, cwd: Path, **changes: Any) -> tuple[Run, str]:
    """Train a run of seven steps."""
    result = dpo(*small_run(shared, **changes), cwd=cwd)
    assert result.returncode == 0, result.stdout + result.stderr
    return Run.only(cwd), result.stdout


def test_a_mixture_with_a_loss_of_whole_batches(shared: Path, tmp_path: Path) -> None:
    changes = {"dpo.loss": ["aot", "apo_zero"], "dpo.loss_weights": [1.0, 0.5]}
    run, said = trained(shared, tmp_path, **changes)
    assert "aot + 0.5 apo_zero, beta 0.1" in said
    assert run.losses[0] == pytest.approx(math.log(2) + 0.5, abs=1e-6)
    assert len(set(run.losses)) == len(run.losses) == 7
    assert run.steps[-1].metrics["kl"] > 0
    plan = run.directory.read_plan()
    assert plan is not None
    assert plan.loss_at_start == pytest.approx(run.losses[0], abs=1e-6)


def test_a_loss_without_a_reference_costs_none(shared: Path, tmp_path: Path) -> None:
    changes = {"dpo.loss": "simpo", "dpo.beta": 2.0, "eval.fraction": 0.2}
    run, said = trained(shared, tmp_path, **changes)
    assert "simpo, beta 2" in said
    assert not (run.directory.path / REFERENCE_FILE).exists()
    assert not list(run.directory.path.glob("*reference*"))
    metrics = [step.metrics for step in run.steps] + [each for _, each in run.evaluations]
    for each in metrics:
        assert not {"margin_per_token", "kl"} & each.keys()
        assert each["rewards/chosen"] == pytest.approx(2 * each["logps/chosen"])
    (_, before), *_, (_, after) = run.evaluations
    assert after["loss"] < before["loss"]


def test_weights_from_the_logits(shared: Path, tmp_path: Path) -> None:
    """WPO lowers the weight of unlikely pairs; without it the loss is ln 2."""
    run, _ = trained(shared, tmp_path, **{"dpo.use_weighting": True, "dpo.ld_alpha": 0.5})
    assert 0 < run.losses[0] < 0.9 * math.log(2)
    assert run.steps[0].metrics["rewards/margins"] == 0


def test_only_losses_of_single_pairs_can_be_regrouped(shared: Path) -> None:
    micro_batches = [(0, 1, 2, 3), (4, 5, 6, 7)]

    def together(loss: str | list[str]) -> list[tuple[int, ...]]:
        run = golden_inputs(shared, **{"dpo.loss": loss})
        return [forward.indices for forward in run.batches.micro_batches(micro_batches)]

    for loss in ("sigmoid", "ipo", "bco_pair"):
        assert together(loss) != micro_batches
    for losses in (["aot"], ["aot_unpaired"], ["sft"], ["sigmoid", "sft"]):
        assert together(losses) == micro_batches
