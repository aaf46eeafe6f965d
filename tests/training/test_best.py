"""Tests of the best held-out loss, and of patience."""

from __future__ import annotations

import math

from dpo_cli.training.best import BestSoFar


def test_lowest_loss_is_best() -> None:
    best = BestSoFar()
    taken = [best.update(loss, step, is_due=True) for step, loss in enumerate([0.7, 0.6, 0.6, 0.5])]
    assert taken == [True, True, False, True]
    assert (best.loss, best.optimizer_step, best.evaluations_since) == (0.5, 3, 0)


def test_only_due_evaluations_use_up_patience() -> None:
    best = BestSoFar()
    for step, is_due in enumerate([True, True, False, True]):
        best.update(0.7, step, is_due=is_due)
    assert best.evaluations_since == 2
    assert "in 2 evaluations" in best.why_over()


def test_nan_is_never_best() -> None:
    best = BestSoFar()
    assert not best.update(math.nan, 0, is_due=True)
    assert best.update(0.7, 1, is_due=True)
    assert not best.update(math.nan, 2, is_due=True)
    assert BestSoFar.from_dict(best.to_dict()) == best
