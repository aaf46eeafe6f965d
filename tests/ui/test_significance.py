"""Words for the comparison of two models."""

from __future__ import annotations

from dpo_cli.paired import ModelScores, PairedComparison, compare, compare_accuracies
from dpo_cli.run.events import ACCURACY, RANKING
from dpo_cli.ui.significance import comparison_note, pairs_to_settle


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
        " settle it at 95 %; loss +0.0000 (95 %: -0.0182 to +0.0182)"
    )
    even = comparison_note("B", "A", result(4, 4))
    assert "accuracy: 4 pairs to 4, p = 1.00, not distinguishable; loss" in even
    assert "accuracy: right about the same pairs; loss" in comparison_note("B", "A", result(0, 0))


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
