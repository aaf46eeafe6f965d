"""Tests of float16: overflows at the start are normal; repeated overflows stop the run."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dpo_cli.compute.loss_scale import LEAST_SCALE, can_halve, make_scaler, update_scale
from dpo_cli.run.events import Alert, StepDone
from tests.support.two_layouts import Recorder, make_trainer, minimind_scorer

CPU = torch.device("cpu")


class StoppedError(Exception):
    """Raised if the trainer reports a step that is not finite."""


class Hooks(Recorder):
    def __init__(self, policy: str) -> None:
        super().__init__()
        self.alerts: list[Alert] = []
        self.policy, self.not_finite = policy, 0

    def emit(self, event: Any) -> None:
        (self.alerts if isinstance(event, Alert) else self.steps).append(event)

    def on_not_finite(self, *_: Any) -> None:
        self.not_finite += 1
        if self.policy == "stop":
            raise StoppedError


def trainer_of_infinite_gradients(hooks: Hooks) -> Any:
    trainer = make_trainer(
        lambda layout: minimind_scorer("minimind2", layout), "packed", hooks, dtype=torch.float32
    )
    trainer.scaler = make_scaler(CPU, torch.float16)
    weight = next(iter(trainer.policy.parameters()))
    weight.register_hook(lambda gradient: torch.full_like(gradient, torch.inf))
    return trainer


def take(trainer: Any, steps: int) -> list[StepDone]:
    global_batches = list(trainer.inputs.order.global_batches())
    return [trainer.take_step(global_batches[n % 4]) for n in range(steps)]


def test_gradients_that_keep_overflowing_are_not_finite() -> None:
    hooks = Hooks("stop")
    trainer = trainer_of_infinite_gradients(hooks)
    before = [parameter.clone() for parameter in trainer.policy.parameters()]
    halvings = 16  # from 65,536 to 1
    done = take(trainer, halvings)
    assert all(step.is_skipped for step in done)
    assert trainer.scaler.get_scale() == LEAST_SCALE
    # One alert: the steps themselves show which were skipped.
    assert [alert.code for alert in hooks.alerts] == ["float16-overflow"]
    with pytest.raises(StoppedError):
        take(trainer, 1)
    assert all(map(torch.equal, before, trainer.policy.parameters()))
    assert trainer.scaler.state_dict()["scale"] == LEAST_SCALE


def test_a_skipped_step_never_saves_a_scale_below_1() -> None:
    """With train.nan_policy = "skip" the run continues."""
    hooks = Hooks("skip")
    trainer = trainer_of_infinite_gradients(hooks)
    take(trainer, 19)
    assert hooks.not_finite == 3
    assert trainer.scaler.state_dict()["scale"] == LEAST_SCALE


def test_a_loss_that_is_not_finite_halves_the_scale_once() -> None:
    scaler = make_scaler(CPU, torch.float16)
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight])
    scaler.scale((weight * torch.inf).sum()).backward()
    scaler.unscale_(optimizer)
    update_scale(scaler, is_skipped=True)
    assert scaler.get_scale() == 32768


def test_other_dtypes_have_no_scale() -> None:
    scaler = make_scaler(CPU, torch.bfloat16)
    assert not scaler.is_enabled()
    assert not can_halve(scaler)
    update_scale(scaler, is_skipped=True)
    assert scaler.state_dict() == {}
