"""95 % confidence intervals of shares, and of differences of shares, in small samples."""

from __future__ import annotations

Z = 1.959963984540054
"""Quantile of the normal distribution: 95 % lies within Z standard deviations."""


def wilson_interval(share: float, count: int) -> tuple[float, float]:
    """Return the 95 % score interval of a share (Wilson 1927), also valid near 0 and 1.

    Args:
        share: observed share, 0 to 1.
        count: sample size, at least 1.
    """
    weight = Z * Z / count
    middle = (share + weight / 2) / (1 + weight)
    reach = (weight * share * (1 - share) + weight * weight / 4) ** 0.5 / (1 + weight)
    return max(0.0, middle - reach), min(1.0, middle + reach)


def difference_interval(
    share: float, count: int, other_share: float, other_count: int
) -> tuple[float, float]:
    """Return the 95 % interval of `share - other_share` (Newcombe 1998, method 10).

    The method assumes independent samples. Two runs on the same pairs mostly agree, so that there
    the interval is too wide: a difference that it shows is real.

    Args:
        share, other_share: observed shares, 0 to 1.
        count, other_count: sample sizes, at least 1.
    """
    (low, high), (other_low, other_high) = (
        wilson_interval(share, count),
        wilson_interval(other_share, other_count),
    )
    difference = share - other_share
    below = ((share - low) ** 2 + (other_high - other_share) ** 2) ** 0.5
    above = ((high - share) ** 2 + (other_share - other_low) ** 2) ** 0.5
    return difference - below, difference + above


def smallest_share_above_half(count: int) -> float | None:
    """Return the smallest share whose 95 % interval excludes one half; None if no share does.

    Args:
        count: sample size, at least 1.
    """
    shares = (hits / count for hits in range(count // 2, count + 1))
    return next((share for share in shares if wilson_interval(share, count)[0] > 0.5), None)
