"""Schedules over optimizer steps are those of transformers, step by step."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from transformers import get_scheduler

from dpo_cli.learning_rate import LearningRate, last_steps

PEAK = 3e-4
LONG = (13, 4, 3)
"""Micro-batches per epoch, per optimizer step, and epochs. The last step of each epoch is short."""
STEPS = 12


def of_transformers(name: str, warmup: int, **settings: Any) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=PEAK)
    scheduler = get_scheduler(
        name,
        optimizer,
        num_warmup_steps=warmup,
        num_training_steps=STEPS,
        scheduler_specific_kwargs=settings,
    )
    rates = []
    for _ in range(STEPS):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return rates


def ours(**train: Any) -> list[float]:
    per_epoch, accumulation_steps, epochs = LONG
    rate = LearningRate.of(
        {"learning_rate": PEAK, **train}, per_epoch * epochs, accumulation_steps, epochs
    )
    return [rate.at(step) for step in last_steps(per_epoch, accumulation_steps, epochs)]


@pytest.mark.parametrize(
    ("name", "settings", "train"),
    [
        ("linear", {}, {"schedule": "linear"}),
        ("cosine", {}, {"schedule": "cosine"}),
        ("constant", {}, {"schedule": "constant"}),
        ("constant_with_warmup", {}, {"schedule": "constant"}),
        (
            "cosine_with_min_lr",
            {"min_lr_rate": 0.1},
            {"schedule": "cosine", "min_lr_ratio": 0.1},
        ),
        ("warmup_stable_decay", {"num_decay_steps": 2}, {"schedule": "wsd"}),
        (
            "warmup_stable_decay",
            {"num_decay_steps": 5, "min_lr_ratio": 0.2},
            {"schedule": "wsd", "decay_iters": 20, "min_lr_ratio": 0.2},
        ),
        (
            "warmup_stable_decay",
            {"num_decay_steps": 11},
            {"schedule": "wsd", "decay_ratio": 0.9},
        ),
    ],
)
@pytest.mark.parametrize(
    ("warmup", "given"),
    [(0, {}), (2, {"warmup_ratio": 0.12}), (3, {"warmup_iters": 12}), (3, {"warmup_iters": 9})],
)
def test_the_schedules_of_transformers(
    name: str,
    settings: dict[str, Any],
    train: dict[str, Any],
    warmup: int,
    given: dict[str, Any],
) -> None:
    if name == "constant":
        given, warmup = {}, 0  # transformers ignores its warm-up
    expected = of_transformers(name, warmup, **settings)
    assert ours(**train, **given) == pytest.approx(expected, rel=1e-12, abs=0)


def test_a_line_to_a_share_of_the_rate() -> None:
    rates = ours(schedule="linear", min_lr_ratio=0.25)
    expected = [PEAK * (1 - 0.75 * step / STEPS) for step in range(STEPS)]
    assert rates == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("schedule", ["minimind2", "minimind3"])
def test_a_share_warms_minimind_up_over_micro_batches(schedule: str) -> None:
    assert ours(schedule=schedule, warmup_ratio=0.2) == ours(
        schedule=schedule, warmup_iters=math.ceil(0.2 * 39)
    )


def test_settings_of_earlier_versions_have_todays_defaults() -> None:
    earlier = {"schedule": "minimind2", "warmup_iters": 3}
    later = {**earlier, "warmup_ratio": 0.0, "min_lr_ratio": 0.0, "decay_iters": None}
    assert ours(**earlier) == ours(**later)
