"""Intervals of shares against published ones."""

from __future__ import annotations

import pytest

from dpo_cli.intervals import wilson_interval


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
