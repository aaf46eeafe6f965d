"""Tests of the texts for durations, sizes, counts and figures."""

from __future__ import annotations

import pytest

from dpo_cli.formatting import (
    format_count,
    format_duration,
    format_number,
    format_percent,
    format_progress,
    format_rate,
    format_seconds,
    format_size,
    format_speed,
    format_with_interval,
)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "0s"),
        (59.6, "1m 00s"),
        (250, "4m 10s"),
        (3600, "1h 00m"),
        (86399.9, "1d 00h"),
        (200000, "2d 07h"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.123, "0.12 s"), (3.14, "3.1 s"), (71.2, "71 s"), (99.6, "1m 40s"), (110, "1m 50s")],
)
def test_seconds(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [(0, "0 B"), (999, "999 B"), (51_700_000, "51.7 MB"), (3_100_000_000, "3.1 GB")],
)
def test_sizes(size_bytes: int, text: str) -> None:
    assert format_size(size_bytes) == text


def test_counts() -> None:
    assert (format_count(1, "pair"), format_count(1000, "pair")) == ("1 pair", "1,000 pairs")


@pytest.mark.parametrize(("value", "text"), [(None, "–"), (-0.0, "+0.00"), (-0.126, "-0.13")])
def test_figures_have_no_negative_zero(value: float | None, text: str) -> None:
    assert format_number(value, "+.2f") == text


def test_shares_and_rates() -> None:
    assert format_percent(0.02314) == "2.31 %"
    assert format_rate(1.06e-8) == "1.1e-8"
    assert format_with_interval(0.97, 0.931, 0.99) == "0.97 (0.93-0.99)"


def test_a_slow_speed_has_a_unit_that_shows_it() -> None:
    assert format_speed(10, 2.0) == "5.0 pairs/s"
    assert format_speed(4, 60.0) == "4.0 pairs/min"
    assert format_speed(2, 142.0) == "71 s/pair"
    assert format_speed(0, 0.0) == "0.0 pairs/s"


def test_progress_towards_an_unknown_total() -> None:
    assert (format_progress(1200, 4000), format_progress(7, None)) == ("1,200/4,000", "7/?")
