"""Intervals of shares against published ones."""

from __future__ import annotations

import pytest

from dpo_cli.intervals import difference_interval, wilson_interval


@pytest.mark.parametrize(
    ("wins", "count", "low", "high"),
    [  # Newcombe 1998, "Two-sided confidence intervals for the single proportion", table I
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_the_interval_of_a_share(wins: int, count: int, low: float, high: float) -> None:
    assert wilson_interval(wins / count, count) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize(
    ("first", "second", "low", "high"),
    [  # Newcombe 1998, "Interval estimation for the difference", table II, method 10
        ((56, 70), (48, 80), 0.0524, 0.3339),
        ((9, 10), (3, 10), 0.1705, 0.8090),
        ((5, 56), (0, 29), -0.0381, 0.1926),
        ((10, 10), (0, 10), 0.6075, 1.0),
    ],
)
def test_the_interval_of_a_difference(
    first: tuple[int, int], second: tuple[int, int], low: float, high: float
) -> None:
    (wins, count), (other_wins, other_count) = first, second
    found = difference_interval(wins / count, count, other_wins / other_count, other_count)
    assert found == pytest.approx((low, high), abs=5e-5)
