"""Tests of the verdict on a finished run."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from dpo_cli.run.events import Event, Planned
from dpo_cli.run.plan import PlannedSteps
from dpo_cli.run.verdict import Verdict, is_best_earlier, verdict_of
from dpo_cli.run.view import RunView
from tests.support.judged_runs import (
    END,
    LN2,
    LOOP,
    PROSE,
    evaluated,
    planned,
    sampled,
    saved,
    step_done,
)


def judged(*events: Event, plan: Planned | None = None) -> Verdict | None:
    return verdict_of(RunView.of([plan or planned(), *events, step_done(15), END]))


@pytest.mark.parametrize(
    ("losses", "half_width", "message"),
    [
        ((LN2, 0.7196), 1.0, "rose from 0.6931 to 0.7196"),
        ((LN2, 0.6960), 0.001, "rose from 0.6931 to 0.6960"),
        ((LN2, 0.60, 0.68), 1.0, "rose from 0.6000 after step 1 to 0.6800"),
        ((LN2, 0.60, math.nan), 1.0, "is nan (0.6931 before training)"),
    ],
)
def test_a_loss_that_rose(losses: tuple[float, ...], half_width: float, message: str) -> None:
    events = [evaluated(n, loss, half_width=half_width) for n, loss in enumerate(losses)]
    verdict = judged(*events)
    assert verdict is not None
    assert f"the loss of 6 held-out pairs {message}" in verdict.message


@pytest.mark.parametrize(
    "losses",
    [
        *((LN2, 0.60), (LN2, 0.6960), (LN2, 0.60, 0.602), (LN2, 0.60, 0.62)),
        *((LN2,), (), (math.nan, math.nan)),
    ],
)
def test_a_loss_that_fell_or_moved_within_chance(losses: tuple[float, ...]) -> None:
    assert judged(*[evaluated(n, loss) for n, loss in enumerate(losses)]) is None


def test_answers_that_repeat_themselves() -> None:
    verdict = judged(sampled(0, *[PROSE] * 4), sampled(15, *[LOOP] * 4))
    assert verdict is not None
    assert verdict.message.startswith("the answers to 4 prompts repeat themselves: 87 % of")
    assert judged(sampled(0, LOOP, PROSE), sampled(15, LOOP, PROSE)) is None
    # One of two answers may repeat itself by chance.
    assert judged(sampled(0, PROSE, PROSE), sampled(15, LOOP, PROSE)) is None
    assert judged(sampled(0, PROSE), sampled(15, LOOP)) is None
    assert judged(sampled(0, PROSE)) is None


def test_a_run_that_has_not_completed_is_not_judged() -> None:
    events = [planned(), evaluated(0, LN2), evaluated(9, 0.8)]
    assert verdict_of(RunView.of(events)) is None


def test_the_remedy_names_the_proposed_rate_and_the_best_checkpoint() -> None:
    rise = (evaluated(0, LN2), evaluated(15, 0.8))
    verdict = judged(*rise)
    assert verdict is not None
    assert "Set train.learning_rate = 5e-6, as dpo init proposes." in verdict.remedy
    assert "eval.keep_best = true" in verdict.remedy
    # Over 1000 steps the sum of the rates is the limit, and a warm-up reduces it.
    steps = PlannedSteps(1000, 1000, 1000, 1)
    for warmup_iters, rate in ((0, "1.6e-6"), (1000, "5e-6")):
        long = planned(train={"warmup_iters": warmup_iters}).plan
        verdict = judged(*rise, plan=Planned(plan=replace(long, steps=steps)))
        assert verdict is not None
        assert f"Set train.learning_rate = {rate}, as dpo init" in verdict.remedy
    kept = judged(*rise, plan=planned(keep_best=True))
    assert kept is not None
    assert "Keep the starting weights" in kept.remedy
    small = judged(*rise, plan=planned(train={"learning_rate": 5e-6}))
    assert small is not None
    assert "Set train.learning_rate = 1.6e-6, or train on more pairs." in small.remedy


def test_the_best_checkpoint_is_offered_if_it_is_not_the_last() -> None:
    assert is_best_earlier(RunView.of([saved(6), step_done(15)]))
    assert not is_best_earlier(RunView.of([saved(15), step_done(15)]))
    assert not is_best_earlier(RunView.of([step_done(15)]))
