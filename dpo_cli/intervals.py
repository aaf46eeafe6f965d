"""How far a share that was seen of few can be believed: 95 % intervals."""

from __future__ import annotations

Z = 1.959963984540054
"""Standard deviations of a normal distribution around 95 % of it."""


def wilson_interval(share: float, count: int) -> tuple[float, float]:
    """The 95 % score interval of a share (Wilson 1927); it holds for few, and near 0 and 1 too.

    Args:
        share: that was seen, 0 to 1.
        count: of how many, at least 1.
    """
    weight = Z * Z / count
    middle = (share + weight / 2) / (1 + weight)
    reach = (weight * share * (1 - share) + weight * weight / 4) ** 0.5 / (1 + weight)
    return max(0.0, middle - reach), min(1.0, middle + reach)


def difference_interval(
    share: float, count: int, other_share: float, other_count: int
) -> tuple[float, float]:
    """The 95 % interval of `share - other_share` (Newcombe 1998, method 10, from Wilson's).

    It takes the two samples for independent. Over the very same pairs two runs mostly win the same
    ones, so that there it is wider than need be: what it tells apart is apart.

    Args:
        share, other_share: 0 to 1.
        count, other_count: of how many, at least 1.
    """
    (low, high), (other_low, other_high) = (
        wilson_interval(share, count),
        wilson_interval(other_share, other_count),
    )
    difference = share - other_share
    below = ((share - low) ** 2 + (other_high - other_share) ** 2) ** 0.5
    above = ((high - share) ** 2 + (other_share - other_low) ** 2) ** 0.5
    return difference - below, difference + above
