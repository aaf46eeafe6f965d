"""Tests of ties: differences that rounding alone can explain."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from dpo_cli.objective.held_out import HELD_OUT_METRICS, score_held_out_pairs
from dpo_cli.objective.logps import Reduction
from dpo_cli.objective.losses import score_pairs
from dpo_cli.objective.ties import ROUNDING_FACTOR, is_tied, preferences, rounding_bounds
from dpo_cli.profile.objective import Dpo

EPSILON = torch.finfo(torch.float32).eps
TABLE = torch.tensor([[-3.0, -4.0, 9.0], [-12.0, -0.001, -0.5]])
MASK = torch.tensor([[1, 1, 0], [1, 1, 1]]).bool()


def preferred(nats: float, *tables: Tensor, reduction: Reduction = "sum") -> bool:
    difference = torch.tensor([nats], dtype=torch.float64)
    bounds = rounding_bounds(tables or (TABLE,), MASK, reduction)
    return preferences(difference, bounds).item() == 1.0


def test_the_bound_is_the_root_of_the_summed_squares() -> None:
    # masked tokens do not count, and a certain token counts as one nat
    bound = ROUNDING_FACTOR * EPSILON * math.sqrt(9 + 16 + 144 + 1 + 1)
    assert not preferred(0.0)
    assert not preferred(-1.0)
    assert not preferred(0.999 * bound)
    assert preferred(1.001 * bound)
    assert not preferred(math.nan)


def test_the_bound_grows_with_each_table_and_shrinks_with_a_mean() -> None:
    both = ROUNDING_FACTOR * EPSILON * math.sqrt(2 * 171)
    assert not preferred(0.999 * both, TABLE, TABLE)
    assert preferred(1.001 * both, TABLE, TABLE)
    mean = ROUNDING_FACTOR * EPSILON * math.sqrt(25 / 4 + 146 / 9)
    assert not preferred(0.999 * mean, reduction="mean")
    assert preferred(1.001 * mean, reduction="mean")


def test_the_bound_follows_the_dtype_of_the_log_probs() -> None:
    assert not preferred(1e-6)
    assert preferred(1e-6, TABLE.double())
    assert not preferred(1e-6, TABLE.double(), TABLE)


def test_no_step_that_float32_can_show_is_a_tie() -> None:
    """At 250 tokens of 2 nats, a shift of every token by one millionth is no tie."""
    policy = torch.full((2, 250), -2.0)
    mask = torch.ones(2, 250).bool()
    moved = policy.clone()
    moved[0] += 2e-6
    assert score_pairs(moved, policy, mask, Dpo(reduction="sum")).accuracies.tolist() == [1.0]


def test_a_tie_counts_half_and_nan_nothing() -> None:
    differences = torch.tensor([1.0, 1e-9, 0.0, -1e-9, -1.0, math.nan], dtype=torch.float64)
    bounds = torch.full_like(differences, 1e-6)
    assert preferences(differences, bounds).tolist() == [1.0, 0.5, 0.5, 0.5, 0.0, 0.0]
    assert is_tied(differences, bounds).tolist() == [False, True, True, True, False, False]


@pytest.mark.parametrize("dpo", [{}, {"beta": 50.0, "reduction": "mean"}, {"loss": "simpo"}])
def test_rewards_and_both_preferences_count_ties_alike(dpo: dict[str, Any]) -> None:
    """Pairs are almost equal or clearly different; no metric counts a rounding error as success."""
    noise = 4 * EPSILON
    policy = torch.tensor([[-2.0, -1.0], [-1.0, -1.0], [-2.0, -1.0 - noise], [-3.0, -1.0]])
    reference = torch.tensor([[-2.0, -1.0 - noise], [-2.0, -1.0], [-2.0, -1.0], [-2.0, -1.0]])
    mask = torch.ones(4, 2).bool()
    table = score_held_out_pairs(policy, reference, -policy, mask, Dpo(**dpo))
    columns = dict(zip(HELD_OUT_METRICS, table.T.tolist(), strict=True))
    assert 0 < columns["rewards/margins"][0] < 1e-4
    assert columns["rewards/accuracies"] == [0.5, 1.0]
    assert columns["rewards/ties"] == [1.0, 0.0]
    assert columns["logps/accuracies"] == [0.5, 1.0]
    if "loss" not in dpo:
        assert columns["ref_logps/accuracies"] == [0.5, 0.5]
