from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter
from transformers import Trainer

from dpo_cli.errors import DpoError
from dpo_cli.learning_rate import LearningRate
from dpo_cli.models.loading import build_model, load_model_weights
from dpo_cli.profile.train import OptimizerName, Train
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
    """Return weights as large as a model's: a normal or uniform start (512 wide), or a norm."""
    generator = torch.Generator().manual_seed(1)
    weights = {
        "normal": 0.02 * torch.randn(count, generator=generator),
        "uniform": (2 * torch.rand(count, generator=generator) - 1) / 512**0.5,
        "norm": torch.ones(count),
    }
    return weights[kind].half().float()


def follow(start: Tensor, steps: int, schedule: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return plain, kahan_summation and float64 weights, and the compensation.

    All get the same noise as gradients. The peak of the learning rate is 1e-8.
    """
    generator = torch.Generator().manual_seed(2)
    plain, kahan_summation = Parameter(start.clone()), Parameter(start.clone())
    exact = Parameter(start.double())
    optimizers = {
        plain: make_optimizer([plain], Train()),
        kahan_summation: make_optimizer([kahan_summation], Train(kahan_summation=True)),
        exact: make_optimizer([exact], Train()),
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
    # The model computes with the float32 number nearest to the exact weight: at most half a spacing
    # off, once, after any number of steps.
    assert error(kahan_summation) < error(plain) / 8
    assert torch.equal((kahan_summation.double() + compensation.double()).float(), kahan_summation)


def test_compensation_is_exact() -> None:
    """Weight plus compensation equal the old sum plus the update, exactly."""
    generator = torch.Generator().manual_seed(4)
    magnitudes = 10.0 ** torch.arange(-13.0, 0.0)  # the update is 1e-8
    weights = torch.cat([torch.zeros(1), torch.randn(13, generator=generator) * magnitudes])
    moving = Parameter(weights.clone())
    optimizer = make_optimizer([moving], Train(kahan_summation=True))
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
    optimizer = make_optimizer([moving, resting], Train(kahan_summation=True))
    moving.grad = torch.ones(3)
    set_learning_rate(optimizer, 1e-3)
    optimizer.step()
    assert moving.tolist() == pytest.approx([1 - 1e-3 - 1e-5] * 3)
    assert resting.tolist() == [1.0] * 3
    assert resting not in optimizer.state


# --- other optimizers ----------------------------------------------------------------------------


NAMES: tuple[OptimizerName, ...] = get_args(OptimizerName)


def shapes(dtype: torch.dtype = torch.float64) -> torch.nn.Module:
    """Return an embedding, matrices, norms and biases."""
    torch.manual_seed(5)
    model = torch.nn.ModuleDict(
        {
            "embed": torch.nn.Embedding(7, 6),
            "wide": torch.nn.Linear(6, 9),
            "q_norm": torch.nn.RMSNorm(6),
            "tall": torch.nn.Linear(9, 4, bias=False),
            "ln_f": torch.nn.LayerNorm(6),
        }
    )
    return model.to(dtype)


def plain_loop(
    model: torch.nn.Module, make: Callable[[list[Parameter]], torch.optim.Optimizer], rate: float
) -> list[Tensor]:
    """Return weights after three steps on the same gradients, by an optimizer of torch."""
    return stepped(model, make(list(model.parameters())), rate)


def stepped(model: torch.nn.Module, optimizer: torch.optim.Optimizer, rate: float) -> list[Tensor]:
    generator = torch.Generator().manual_seed(6)
    for step in range(3):
        for weight in model.parameters():
            weight.grad = torch.randn(weight.shape, generator=generator, dtype=weight.dtype)
        set_learning_rate(optimizer, rate / (step + 1))
        optimizer.step()
    return [weight.detach() for weight in model.parameters()]


def muon_loop(model: torch.nn.Module, rate: float) -> list[Tensor]:
    """Muon trains the two matrices, a second optimizer the rest."""
    weights = dict(model.named_parameters())
    matrices = {name: weights[name] for name in ("wide.weight", "tall.weight")}
    others = [weight for name, weight in weights.items() if name not in matrices]
    muon = torch.optim.Muon(
        list(matrices.values()), lr=rate, weight_decay=0.3, adjust_lr_fn="match_rms_adamw"
    )
    adamw = torch.optim.AdamW(others, lr=rate, betas=(0.8, 0.9), eps=1e-5, weight_decay=0.3)
    generator = torch.Generator().manual_seed(6)
    for step in range(3):
        for weight in model.parameters():
            weight.grad = torch.randn(weight.shape, generator=generator, dtype=weight.dtype)
        for optimizer in (muon, adamw):
            set_learning_rate(optimizer, rate / (step + 1))
            optimizer.step()
    return [weight.detach() for weight in model.parameters()]


@pytest.mark.parametrize("name", NAMES)
def test_each_optimizer_is_its_makers(name: OptimizerName) -> None:
    if name == "adamw8bit":
        pytest.importorskip("bitsandbytes")
    train = Train(optimizer=name, adam_betas=[0.8, 0.9], adam_epsilon=1e-5, weight_decay=0.3)
    # bitsandbytes computes in float32.
    dtype = torch.float32 if name == "adamw8bit" else torch.float64
    model, rate = shapes(dtype), 0.1
    ours = stepped(model, make_optimizer(model.parameters(), train, model), rate)
    factories = {
        "adamw": lambda weights: torch.optim.AdamW(
            weights, betas=(0.8, 0.9), eps=1e-5, weight_decay=0.3
        ),
        "adafactor": lambda weights: torch.optim.Adafactor(weights, weight_decay=0.3),
        "sgd": lambda weights: torch.optim.SGD(weights, weight_decay=0.3),
        "adamw8bit": lambda weights: pytest.importorskip("bitsandbytes").optim.AdamW8bit(
            weights, betas=(0.8, 0.9), eps=1e-5, weight_decay=0.3
        ),
    }
    plain = shapes(dtype)
    expected = (
        muon_loop(plain, rate) if name == "muon" else plain_loop(plain, factories[name], rate)
    )
    for mine, other, start in zip(ours, expected, shapes(dtype).parameters(), strict=True):
        assert torch.allclose(mine, other, rtol=0, atol=1e-12)
        assert not torch.equal(mine, start)


@pytest.mark.parametrize("name", [each for each in NAMES if each != "adamw8bit"])
def test_norms_and_biases_may_keep_their_size(name: OptimizerName) -> None:
    """Without gradients, decay alone moves a weight."""
    model = shapes()
    train = Train(optimizer=name, decay_norms_and_biases=False, weight_decay=0.5)
    optimizer = make_optimizer(model.parameters(), train, model)
    for weight in model.parameters():
        weight.grad = torch.zeros_like(weight)
    set_learning_rate(optimizer, 0.1)
    optimizer.step()
    still = {
        name
        for (name, weight), start in zip(
            model.named_parameters(), shapes().parameters(), strict=True
        )
        if torch.equal(weight, start)
    }
    assert still == {"wide.bias", "q_norm.weight", "ln_f.weight", "ln_f.bias"}


@pytest.mark.parametrize("name", ["seed/full_sft_64", "head/full_sft_64_moe"])
def test_what_does_not_decay_is_what_transformers_leaves_out(golden: Path, name: str) -> None:
    weights = load_model_weights(golden / "arch" / f"{name}.pth", {})
    model = build_model(weights.architecture, weights.state)
    optimizer = make_optimizer(
        model.parameters(), Train(decay_norms_and_biases=False, weight_decay=0.5), model
    )
    decayed = {
        id(each)
        for group in optimizer.param_groups
        if group["weight_decay"]
        for each in group["params"]
    }
    names = Trainer.get_decay_parameter_names(None, model)  # type: ignore[arg-type]
    assert decayed == {id(model.get_parameter(name)) for name in names}
    assert len(decayed) < len(list(model.parameters()))


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DpoError, match="needs the package bitsandbytes") as caught:
        make_optimizer([Parameter(torch.ones(2, 2))], Train(optimizer="adamw8bit"))
    assert "bitsandbytes" in caught.value.remedy


def test_an_older_torch_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.optim, "Muon")
    with pytest.raises(DpoError, match=r'train\.optimizer = "muon": torch .* has no') as caught:
        make_optimizer([Parameter(torch.ones(2, 2))], Train(optimizer="muon"))
    assert "2.9 or later" in caught.value.remedy
