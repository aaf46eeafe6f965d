"""Words for the comparison of two models."""

from __future__ import annotations

import math

import pytest

from dpo_cli.paired import (
    ModelScores,
    PairedComparison,
    compare,
    compare_accuracies,
    estimate_mean,
)
from dpo_cli.run.events import ACCURACY, RANKING
from dpo_cli.ui.significance import comparison_note, difference, pairs_to_settle


def result(ahead: int, behind: int, agreed: int = 100, lead: float = 0.0) -> PairedComparison:
    first = [1.0] * ahead + [0.0] * behind + [1.0] * agreed
    second = [0.0] * ahead + [1.0] * behind + [1.0] * agreed
    noise = [0.1 if number % 2 else -0.1 for number in range(len(first))]
    losses = [lead + each for each in noise]
    labels = list(range(len(first)))
    return compare(
        ModelScores({ACCURACY: first, "loss": losses}, labels),
        ModelScores({ACCURACY: second, "loss": [0.0] * len(first)}, labels),
        [ACCURACY, RANKING],
    )


def test_a_split_that_chance_explains() -> None:
    assert comparison_note("B", "A", result(12, 8)) == (
        "B vs. A, pair by pair: accuracy: 12 pairs to 8, p = 0.50, about 520 more pairs would"
        " settle it at 95 %; loss +0.0000 (95 %: -0.0182 to +0.0182,"
        " too close to be settled by more pairs)"
    )
    even = comparison_note("B", "A", result(4, 4))
    assert "accuracy: 4 pairs to 4, p = 1.00, too close to be settled by more pairs; loss" in even
    assert "accuracy: right about the same pairs; loss" in comparison_note("B", "A", result(0, 0))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([0.1, -0.1] * 50, "+0.0000 (95 %: -0.0199 to +0.0199, too close to be settled by more"),
        # A fifth of the half-width is the limit: 25 times as many pairs.
        ([0.1039, -0.0961] * 50, "+0.0039 (95 %: -0.0160 to +0.0238, too close to be settled by"),
        ([0.1041, -0.0959] * 50, "+0.0041 (95 %: -0.0158 to +0.0240, about 2,300 more pairs would"),
        # No digit that is shown differs from 0.
        ([0.0001, -0.00005] * 5, "+0.0000 (95 %: -0.0000 to +0.0001, too close to be settled by"),
        ([0.0] * 9, "equal for every pair"),
        ([0.25], "+0.2500 (no interval, with a single pair or prompt)"),
        ([math.nan, 0.1], "+nan"),
    ],
)
def test_a_difference_close_to_zero(values: list[float], words: str) -> None:
    assert difference(estimate_mean(values), "+.4f").startswith(words)


def test_a_split_close_to_even() -> None:
    assert "p = 0.92, too close to be settled" in comparison_note("B", "A", result(51, 49))
    assert pairs_to_settle([result(51, 49)]) is None


def test_a_difference_that_is_significant() -> None:
    note = comparison_note("B", "A", result(30, 8, lead=-0.03))
    assert "accuracy: 30 pairs to 8, p < 0.001, significant; loss -0.0300 (95 %: -0.046" in note
    assert note.endswith(")")
    assert "loss" not in comparison_note("B", "A", result(30, 8), has_one_objective=False)


def test_pairs_that_would_settle_all_comparisons() -> None:
    assert pairs_to_settle([result(12, 8), result(9, 6)]) == max(
        result(12, 8).accuracies[ACCURACY].more_pairs or 0,
        result(9, 6).accuracies[ACCURACY].more_pairs or 0,
    )
    assert pairs_to_settle([result(12, 8), result(4, 4)]) is None
    assert pairs_to_settle([]) is None


def test_a_cluster_is_a_prompt() -> None:
    test = compare_accuracies([1, 1, 0], [0, 0, 0], [0, 0, 1])
    note = comparison_note("B", "A", PairedComparison({RANKING: test}, {}))
    assert note == (
        "B vs. A, pair by pair: ranking accuracy: 1 prompt to 0, p = 1.00, about 14 more pairs"
        " would settle it at 95 %"
    )
