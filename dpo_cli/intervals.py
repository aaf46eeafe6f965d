"""95 % confidence intervals of shares in small samples."""

from __future__ import annotations

Z = 1.959963984540054
"""Quantile of the normal distribution: 95 % lies within Z standard deviations."""


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
