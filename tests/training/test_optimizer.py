from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from dpo_cli.learning_rate import LearningRate
from dpo_cli.training.optimizer import (
    COMPENSATION,
    make_optimizer,
    set_learning_rate,
)


@pytest.mark.parametrize(("version", "schedule"), [("seed", "minimind2"), ("head", "minimind3")])
@pytest.mark.parametrize("name", ["dense_lr1e-4_acc1", "dense_lr1e-4_acc2", "dense_lr1e-8_acc1"])
def test_the_golden_rates(golden: Path, version: str, schedule: str, name: str) -> None:
    recorded = json.loads((golden / f"train/{version}/{name}.json").read_text())
    steps = recorded["steps"]
    rate = LearningRate(schedule, recorded["args"]["learning_rate"], len(steps), 0)  # type: ignore[arg-type]
    ours = [rate.at(step) for step in range(len(steps))]
    assert ours == pytest.approx([step["lr"] for step in steps], rel=1e-12)


def test_the_ends_of_both_schedules() -> None:
    assert LearningRate("minimind2", 1.0, 100, 0).at(0) == pytest.approx(1.1)
    assert LearningRate("minimind3", 1.0, 100, 0).at(99) == pytest.approx(0.1)


def test_warmup_is_linear() -> None:
    warm, cold = (LearningRate("minimind2", 1.0, 1000, iters) for iters in (4, 0))
    shares = [warm.at(step) / cold.at(step) for step in range(6)]
    assert shares == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0, 1.0])


def born_float16(kind: str, count: int) -> Tensor:
    """Weights as large as a model's: of a normal or a uniform start (512 wide), or of a norm."""
    generator = torch.Generator().manual_seed(1)
    weights = {
        "normal": 0.02 * torch.randn(count, generator=generator),
        "uniform": (2 * torch.rand(count, generator=generator) - 1) / 512**0.5,
        "norm": torch.ones(count),
    }
    return weights[kind].half().float()


def follow(start: Tensor, steps: int, schedule: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Plain, kahan_summation and float64 weights, and the compensation, after the same gradients.

    The gradients are noise, and the peak of the learning rate is 1e-8.
    """
    generator = torch.Generator().manual_seed(2)
    plain, kahan_summation = Parameter(start.clone()), Parameter(start.clone())
    exact = Parameter(start.double())
    optimizers = {
        plain: make_optimizer([plain]),
        kahan_summation: make_optimizer([kahan_summation], kahan_summation=True),
        exact: make_optimizer([exact]),
    }
    cosine = LearningRate("minimind2", 1e-8, steps, 0)
    for step in range(steps):
        gradient = torch.randn(start.shape, generator=generator)
        for weight, optimizer in optimizers.items():
            weight.grad = gradient.to(weight.dtype)
            set_learning_rate(optimizer, cosine.at(step) if schedule == "cosine" else 1e-8)
            optimizer.step()
    kept = optimizers[kahan_summation].state[kahan_summation]
    for moment in ("step", "exp_avg", "exp_avg_sq"):
        assert torch.equal(kept[moment], optimizers[plain].state[plain][moment])
    return plain.detach(), kahan_summation.detach(), exact.detach(), kept[COMPENSATION]


@pytest.mark.parametrize(
    ("kind", "schedule", "plain_error"),
    [
        ("uniform", "constant", 0.08),
        ("normal", "cosine", 0.11),
        ("norm", "constant", 1.0),  # no weight of 1 moves at all
    ],
)
def test_kahan_summation_follows_float64(kind: str, schedule: str, plain_error: float) -> None:
    """At 1e-8, plain float32 loses a tenth of the update, or all of it."""
    start = born_float16(kind, 2048)
    plain, kahan_summation, exact, compensation = follow(start, 1000, schedule)
    update = (exact - start.double()).norm()

    def error(weights: Tensor) -> float:
        return ((weights.double() - exact).norm() / update).item()

    assert error(plain) == pytest.approx(plain_error, rel=0.1)
    assert error(kahan_summation.double() + compensation.double()) < 1e-5
    # The weight that the model computes with is the float32 number nearest to its master: half a
    # spacing off at most, once, however many steps there were.
    assert error(kahan_summation) < error(plain) / 8
    assert torch.equal((kahan_summation.double() + compensation.double()).float(), kahan_summation)


def test_compensation_is_exact() -> None:
    """Weight plus compensation equal the old sum plus the update, exactly."""
    generator = torch.Generator().manual_seed(4)
    magnitudes = 10.0 ** torch.arange(-13.0, 0.0)  # the update is 1e-8
    weights = torch.cat([torch.zeros(1), torch.randn(13, generator=generator) * magnitudes])
    moving = Parameter(weights.clone())
    optimizer = make_optimizer([moving], kahan_summation=True)
    optimizer.param_groups[0]["weight_decay"] = 0.0
    moving.grad = torch.full_like(moving, 0.3)
    set_learning_rate(optimizer, 1e-8)
    optimizer.step()
    masters = moving.detach().double() + optimizer.state[moving][COMPENSATION].double()
    update = masters[0]
    assert update.item() == pytest.approx(-1e-8)
    assert torch.equal(masters, weights.double() + update)


def test_weights_without_gradient_do_not_change() -> None:
    moving, resting = Parameter(torch.ones(3)), Parameter(torch.ones(3))
    optimizer = make_optimizer([moving, resting], kahan_summation=True)
    moving.grad = torch.ones(3)
    set_learning_rate(optimizer, 1e-3)
    optimizer.step()
    assert moving.tolist() == pytest.approx([1 - 1e-3 - 1e-5] * 3)
    assert resting.tolist() == [1.0] * 3
    assert resting not in optimizer.state
