"""Every training run in golden/train, step by step, through the worker that `dpo train` starts.

Two recorded mistakes of MiniMind's script are exceptions: MiniMind version 2's mixture of experts
rounds expert outputs to float16 in training, and its accumulation leaks the last gradient of an
epoch into the next. `dpo` repeats neither (see docs/architecture.md).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support import workers
from tests.support.cli import Run, set_options
from tests.support.golden_runs import (
    DENSE_LOSS,
    FINAL_WEIGHTS,
    FINAL_WEIGHTS_SEED_MOE,
    MOE_LOSS,
    PROFILES,
    assert_grad_norms,
    assert_steps,
    settings,
    update_error,
)


def train(
    shared: Path, cwd: Path, version: str, name: str, **changes: Any
) -> tuple[Run, dict[str, Any]]:
    """Repeat the run golden/train/<version>/<name>.json; return our and the recorded numbers."""
    recorded = json.loads((shared / "golden/train" / version / f"{name}.json").read_text())
    keys = settings(shared, version, recorded) | changes
    profile = PROFILES[version, recorded["args"]["use_moe"]]
    run = workers.new_run(cwd, ["train", profile, *set_options(keys)])
    assert workers.work(run) == 0
    return Run(run), recorded


@pytest.mark.parametrize("layout", ["packed", "padded"])
@pytest.mark.parametrize(
    ("version", "name"),
    [
        ("seed", "dense_lr1e-4_acc1"),
        ("seed", "dense_lr1e-8_acc1"),
        ("head", "dense_lr1e-4_acc1"),
        ("head", "dense_lr1e-4_acc2"),
        ("head", "dense_lr1e-8_acc1"),
    ],
)
def test_dense(shared: Path, tmp_path: Path, version: str, name: str, layout: str) -> None:
    run, recorded = train(shared, tmp_path, version, name, **{"train.layout": layout})
    assert_steps(run, recorded, loss=DENSE_LOSS, steps=len(recorded["steps"]))
    assert_grad_norms(run, recorded, updates=recorded["optimizer_updates"])
    assert len(run.losses) == len(recorded["steps"])
    assert len(run.steps) == recorded["optimizer_updates"]
    used = {step.step: step.learning_rate for step in run.steps}
    rates = [step["lr"] for step in recorded["steps"]]
    assert used == pytest.approx({step: rates[step - 1] for step in used}, rel=1e-12)
    if recorded["args"]["learning_rate"] > 1e-8:
        start = recorded["start_checkpoint"]
        assert update_error(shared, version, name, run, start) < FINAL_WEIGHTS


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_seed_accumulation_up_to_its_leak(shared: Path, tmp_path: Path, layout: str) -> None:
    """Seven micro-batches, two per step.

    MiniMind's script leaves the gradient of the seventh to the next epoch. `dpo` uses it at the end
    of the epoch, divided by 2 as always.
    """
    run, recorded = train(shared, tmp_path, "seed", "dense_lr1e-4_acc2", **{"train.layout": layout})
    per_epoch = recorded["steps_per_epoch"]
    updates_per_epoch = per_epoch // 2
    assert_steps(run, recorded, loss=DENSE_LOSS, steps=per_epoch)
    assert_grad_norms(run, recorded, updates=updates_per_epoch)
    assert recorded["optimizer_updates"] == 2 * updates_per_epoch
    assert [step.step for step in run.steps] == [2, 4, 6, 7, 9, 11, 13, 14]
    # The step at the end of the epoch moves the weights, so later losses differ.
    later = [step["loss"] for step in recorded["steps"][per_epoch:]]
    differences = [abs(a - b) for a, b in zip(run.losses[per_epoch:], later, strict=True)]
    assert DENSE_LOSS < max(differences) < 5e-3


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_seed_moe(shared: Path, tmp_path: Path, layout: str) -> None:
    name = "moe_lr1e-4_acc1"
    run, recorded = train(shared, tmp_path, "seed", name, **{"train.layout": layout})
    assert_steps(run, recorded, loss=MOE_LOSS, steps=len(recorded["steps"]))
    assert_grad_norms(run, recorded, updates=recorded["optimizer_updates"])
    error = update_error(shared, "seed", name, run, recorded["start_checkpoint"])
    assert error < FINAL_WEIGHTS_SEED_MOE


def test_head_moe_with_padding_in_the_aux_loss(shared: Path, tmp_path: Path) -> None:
    name = "moe_lr1e-4_acc1"
    changes = {"train.layout": "padded", "train.aux_loss_tokens": "all"}
    run, recorded = train(shared, tmp_path, "head", name, **changes)
    assert_steps(run, recorded, loss=MOE_LOSS, steps=len(recorded["steps"]))
    assert_grad_norms(run, recorded, updates=recorded["optimizer_updates"])
    error = update_error(shared, "head", name, run, recorded["start_checkpoint"])
    assert error < FINAL_WEIGHTS
    coefficient = 5e-4
    aux = [coefficient * step.metrics["aux_loss"] for step in run.steps]
    assert aux == pytest.approx([step["aux_loss"] for step in recorded["steps"]], rel=1e-4)


def test_head_moe_with_real_tokens_only(shared: Path, tmp_path: Path) -> None:
    """Without padding the router gets another gradient; the first step is the same."""
    run, recorded = train(shared, tmp_path, "head", "moe_lr1e-4_acc1")
    first = recorded["steps"][0]
    assert run.steps[0].metrics["loss"] == pytest.approx(first["dpo_loss"], abs=1e-6)
    differences = [
        abs(ours - step["loss"]) for ours, step in zip(run.losses, recorded["steps"], strict=True)
    ]
    assert 1e-3 < max(differences) < 0.12  # 9.4e-2 in an independent replay
