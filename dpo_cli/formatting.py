"""Formatting of durations, sizes, counts and figures for people, in one place."""

from __future__ import annotations

import math

MISSING = "–"
"""Shown in place of a figure that does not exist."""


def format_duration(seconds: float) -> str:
    """Return a duration in its two largest units: 42s, 4m 10s, 3h 05m, 2d 07h; a dash for NaN."""
    if not math.isfinite(seconds):  # of a damaged event stream
        return MISSING
    whole = round(seconds)  # before the units are chosen: 59.6 must not become 60s
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h {whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d {whole % 86400 // 3600:02d}h"


def format_seconds(seconds: float, digits: int = 2) -> str:
    """Return seconds with these digits below 100 s: 0.12 s, 71 s; above as a duration: 1m 50s."""
    return f"{seconds:.{digits}g} s" if abs(seconds) < 99.5 else format_duration(seconds)


def format_size(size_bytes: int) -> str:
    """Return a size in decimal units: 51.7 MB."""
    amount = float(size_bytes)
    for unit in ("B", "kB", "MB"):
        if amount < 1000:
            return f"{amount:.0f} B" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} GB"


def format_count(number: int, noun: str) -> str:
    """Return a number and its noun: 1 pair, 25,829,888 parameters."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def format_number(value: float | None, spec: str) -> str:
    """Apply a format spec to a figure; return a dash for None."""
    return MISSING if value is None else format(value + 0.0, spec)  # -0.0 + 0.0 is 0.0: no "-0"


def format_percent(share: float, decimals: int | None = None) -> str:
    """Return a share as a percentage: 0.0231 becomes 2.31 %, or 2 % with 0 decimals.

    Args:
        share: 1 becomes 100 %.
        decimals: number of decimals; None for three digits in all.
    """
    return f"{100 * share:.3g} %" if decimals is None else f"{100 * share:.{decimals}f} %"


def format_rate(number: float) -> str:
    """Return a small number with two digits: 1.1e-8, where Python writes 1.1e-08; 0 as it is."""
    return f"{number:.1e}".replace("e-0", "e-") if number else "0"


def format_speed(pairs: float, seconds: float) -> str:
    """Return a speed in the unit that shows it: 5.0 pairs/s, 4.2 pairs/min or 71 s/pair."""
    if not pairs or not seconds:
        return "0.0 pairs/s"
    if pairs / seconds >= 1:
        return f"{pairs / seconds:.1f} pairs/s"
    if 60 * pairs / seconds >= 1:
        return f"{60 * pairs / seconds:.1f} pairs/min"
    return f"{seconds / pairs:,.0f} s/pair"


def format_progress(done: int, total: int | None) -> str:
    """Return how many of a total are done: 1,200/4,000, or 1,200/? while it is unknown."""
    return f"{done:,}/{'?' if total is None else f'{total:,}'}"


def format_with_interval(share: float, low: float, high: float) -> str:
    """Return a share and its confidence interval: 0.97 (0.93-0.99)."""
    return f"{share:.2f} ({low:.2f}-{high:.2f})"
