"""95 % confidence intervals: of shares in small samples, and the names of their ends."""

from __future__ import annotations

Z = 1.959963984540054
"""Quantile of the normal distribution: 95 % lies within Z standard deviations."""
LOW, HIGH = "/low", "/high"
"""Suffixes of a metric's name for the two ends of its 95 % interval."""


def wilson_interval(share: float, count: float) -> tuple[float, float]:
    """Return the 95 % score interval of a share (Wilson 1927), also valid near 0 and 1.

    Args:
        share: observed share, 0 to 1.
        count: sample size, at least 1; not whole for pairs that are not independent, see
            `dpo_cli.paired.effective_count`.
    """
    weight = Z * Z / count
    middle = (share + weight / 2) / (1 + weight)
    reach = (weight * share * (1 - share) + weight * weight / 4) ** 0.5 / (1 + weight)
    return max(0.0, middle - reach), min(1.0, middle + reach)


def smallest_share_above_half(count: int) -> float | None:
    """Return the smallest share whose 95 % interval excludes one half; None if no share does.

    Args:
        count: sample size, at least 1.
    """
    shares = (hits / count for hits in range(count // 2, count + 1))
    return next((share for share in shares if wilson_interval(share, count)[0] > 0.5), None)
