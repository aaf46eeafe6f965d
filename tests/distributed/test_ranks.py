"""Several ranks train as one process does on the same global batches.

Real workers sum gradients through gloo. If each rank computes one of the two forwards of a step,
the sum has two terms and no order, so the bits are the same. Otherwise gradients are summed in
another order, and a pair may be batched with other pairs: losses then agree within 1e-6, and
gradient norms within a few units of float32's last place. Weights agree only to `OF_THE_UPDATE` of
their update, because AdamW divides each gradient by its own size, also gradients that are only
rounding errors. A run in float64 shows that nothing else differs.
"""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from dpo_cli.distributed.process_group import ProcessGroup
from dpo_cli.models.loading import read_state_dict
from tests.support import rank_faults, ranks, workers
from tests.support.cli import Run, set_options
from tests.support.golden_runs import (
    DENSE_LOSS,
    FINAL_WEIGHTS,
    PROFILES,
    assert_grad_norms,
    assert_steps,
    settings,
    update_error,
)
from tests.support.small_runs import golden_run
from tests.support.two_layouts import (
    ARCHITECTURES,
    Float64,
    Recorder,
    make_trainer,
    minimind_scorer,
)

MODELS = [("seed", False), ("seed", True), ("head", False), ("head", True)]
LOSS, GRAD_NORM = 1e-6, 5e-6
OF_THE_UPDATE = 2e-4
FLOAT64 = 1e-10

TWO_FORWARDS = {
    "train.epochs": 1,
    "train.batch_size": 1,
    "train.max_tokens_per_forward": 1,
    "eval.interval": 12,
}
"""Each step consists of two forwards with one pair each."""
UNEVEN = {
    "train.epochs": 2,
    "train.batch_size": 4,
    "train.global_batch_size": 24,
    "eval.fraction": 0.0,
}
"""27 pairs: a global batch of six micro-batches, and one of a micro-batch with three pairs."""


def train(root: Path, size: int, arguments: list[str]) -> Run:
    """Train a run with `size` ranks, which record their work in its directory."""
    run = workers.new_run(root / f"{size}", arguments)
    assert ranks.work(run, size, partial(rank_faults.note, run.path)) == [0] * size
    return Run(run)


@pytest.mark.parametrize(("version", "moe"), MODELS)
def test_two_ranks_equal_one_process_bit_for_bit(
    shared: Path, tmp_path: Path, version: str, moe: bool
) -> None:
    def run(size: int) -> Run:
        keys = {**TWO_FORWARDS, "train.accumulation_steps": 2 // size}
        return train(tmp_path, size, golden_run(shared, version, moe, **keys))

    one, two = run(1), run(2)
    assert len(one.steps) == 11
    assert two.metric_rows == one.metric_rows
    ours, expected = two.files(), one.files()
    for name in ("weights.safetensors", "exp_avg.safetensors", "exp_avg_sq.safetensors"):
        assert ours[name] == expected[name]
    [(_, _, weights)] = rank_faults.ends_of(one.directory.path)
    assert [digest for _, _, digest in rank_faults.ends_of(two.directory.path)] == [weights] * 2
    # Held-out pairs are summed in another order.
    for (step, metrics), (same_step, same) in zip(two.evaluations, one.evaluations, strict=True):
        assert step == same_step
        assert metrics == pytest.approx(same, rel=1e-12, abs=1e-12)
    # Seconds of each rank are recorded only if there are several.
    assert {len(step.rank_seconds) for step in two.steps} == {2}
    assert {len(step.rank_seconds) for step in one.steps} == {0}


@pytest.mark.parametrize(("version", "moe"), [("seed", False), ("head", True)])
def test_uneven_last_batches_are_computed_once_with_the_right_weight(
    shared: Path, tmp_path: Path, version: str, moe: bool
) -> None:
    arguments = golden_run(shared, version, moe, **UNEVEN)
    one = train(tmp_path, 1, arguments)
    start = read_state_dict(
        shared / f"golden/train/{version}/full_sft_64{'_moe' if moe else ''}.pth"
    )
    pairs = rank_faults.pairs_of(one.directory.path)
    assert [len(pairs[step]) for step in (1, 2, 3, 4)] == [24, 3, 24, 3]
    for epoch in ((1, 2), (3, 4)):
        assert sorted(pairs[epoch[0]] + pairs[epoch[1]]) == list(range(27))
    for size in (2, 3):
        several = train(tmp_path, size, arguments)
        assert rank_faults.pairs_of(several.directory.path) == pairs
        assert [step.pairs for step in several.steps] == [24, 3, 24, 3]
        assert [step.tokens for step in several.steps] == [step.tokens for step in one.steps]
        assert several.losses == pytest.approx(one.losses, abs=LOSS, rel=0)
        assert several.grad_norms == pytest.approx(one.grad_norms, rel=GRAD_NORM)
        assert len({weights for *_, weights in rank_faults.ends_of(several.directory.path)}) == 1
        ours, expected = several.weights, one.weights
        error = sum(
            (ours[name] - weight).double().square().sum() for name, weight in expected.items()
        )
        update = sum(
            (weight - start[name]).double().square().sum() for name, weight in expected.items()
        )
        assert (error / update) ** 0.5 < OF_THE_UPDATE


def _train_in_float64(size: int, folder: Path, number: int) -> None:
    """Train six steps of each architecture on one rank; save losses and summed gradients."""
    torch.set_default_dtype(torch.float64)
    own = ProcessGroup.from_env()
    own.agree_on_run(str(folder) if number == 0 else None)
    own.init_collectives(torch.device("cpu"), timeout_seconds=30)
    for name in ARCHITECTURES:
        hooks = Recorder()
        with Float64():
            trainer = make_trainer(partial(minimind_scorer, name), "packed", hooks)
            trainer.group = own
            # Ten pairs, one per micro-batch: steps of four, the last step of an epoch has two.
            profile = trainer.inputs.profile
            train = profile.train.model_copy(update={"batch_size": 1, "epochs": 2})
            trainer.inputs = replace(
                trainer.inputs,
                profile=profile.model_copy(update={"train": train}),
                accumulation_steps=4,
                world_size=size,
            )
            assert trainer.inputs.order.pairs == 10
            assert trainer.train() is None
        losses = torch.tensor([loss for step in hooks.steps for loss in step.losses])
        torch.save([losses, *hooks.gradients], folder / f"{name}-{number}")
    own.report_end()
    own.destroy()


def test_in_float64_only_the_order_of_sums_differs(tmp_path: Path) -> None:
    for size in (1, 2, 3):
        (folder := tmp_path / f"{size}").mkdir()
        group = ranks.Group(size, partial(_train_in_float64, size, folder))
        assert group.wait() == [0] * size
    for name in ARCHITECTURES:
        alone = torch.load(tmp_path / f"1/{name}-0")
        assert len(alone) == 1 + 6
        for size in (2, 3):
            for number in range(size):
                told = torch.load(tmp_path / f"{size}/{name}-{number}")
                for ours, expected in zip(told, alone, strict=True):
                    assert (ours - expected).abs().max() < FLOAT64, (name, size)


@pytest.mark.parametrize(
    ("version", "layout"), [("head", "packed"), ("head", "padded"), ("seed", "packed")]
)
def test_golden_runs_at_two_ranks(shared: Path, tmp_path: Path, version: str, layout: str) -> None:
    """Golden runs with two micro-batches per step; version 2 up to its leaked accumulation."""
    name = "dense_lr1e-4_acc2"
    recorded: dict[str, Any] = json.loads(
        (shared / f"golden/train/{version}/{name}.json").read_text()
    )
    keys = settings(shared, version, recorded)
    keys |= {"train.accumulation_steps": 1, "train.layout": layout}
    run = train(tmp_path, 2, ["train", PROFILES[version, False], *set_options(keys)])
    if version == "head":
        assert_steps(run, recorded, loss=DENSE_LOSS, steps=len(recorded["steps"]))
        assert_grad_norms(run, recorded, updates=recorded["optimizer_updates"])
        start = recorded["start_checkpoint"]
        assert update_error(shared, version, name, run, start) < FINAL_WEIGHTS
    else:
        per_epoch = recorded["steps_per_epoch"]
        assert_steps(run, recorded, loss=DENSE_LOSS, steps=per_epoch)
        assert_grad_norms(run, recorded, updates=per_epoch // 2)
        assert [step.step for step in run.steps] == [2, 4, 6, 7, 9, 11, 13, 14]
