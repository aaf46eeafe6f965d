"""Comparison of two models on the same pairs: exact tests, intervals, and pairs still needed.

Two models that are compared on the same pairs agree on most of them. Only differences pair by pair
show which is better, so both values of a pair are subtracted before anything is averaged. Pairs
with the same prompt are not independent: they form a cluster, and clusters are what is counted.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import repeat

from dpo_cli.intervals import Z

LEVEL = 0.05
"""Largest probability of a difference by chance that counts as significant."""
_MOST_TIMES = 25
"""Largest factor by which more pairs are said to settle a difference. Beyond it the difference is
less than a fifth of the half-width of its interval. Chance alone makes a larger one in 7 of 10
cases, so the number of pairs would be a guess."""


@dataclass(frozen=True)
class MeanEstimate:
    """Mean of a metric, or of the differences of two models pair by pair.

    Attributes:
        mean: mean over the pairs.
        low, high: 95 % interval; infinite with a single cluster, or a mean that is not finite.
        more_pairs: about how many more pairs would make the interval exclude 0, if the difference
            stays as it is; 0 if it does already, None if it is 0, close to 0, or unknown.
    """

    mean: float
    low: float
    high: float
    more_pairs: int | None

    @property
    def is_significant(self) -> bool:
        """Return True if the 95 % interval excludes 0."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Preference:
    """Exact test of which of two models is right about more pairs.

    Attributes:
        ahead, behind: pairs about which only the first model is right, and only the second.
        unit: "pair"; or "prompt" if prompts repeat, and `ahead` and `behind` count prompts.
        p: probability of a split that is at least as uneven if both models are equally good.
        more_pairs: about how many more pairs would make it significant, if the split stays as it
            is; 0 if it is significant already, None if the split is even, or close to even.
    """

    ahead: int
    behind: int
    unit: str
    p: float
    more_pairs: int | None

    @property
    def is_significant(self) -> bool:
        """Return True if chance explains the split with a probability of 5 % or less."""
        return self.p <= LEVEL


@dataclass(frozen=True)
class PairedComparison:
    """Comparison of a first model with a second one on the same pairs.

    Attributes:
        accuracies: test of each accuracy that both models have, by metric.
        differences: first minus second, by metric.
    """

    accuracies: Mapping[str, Preference]
    differences: Mapping[str, MeanEstimate]


@dataclass(frozen=True)
class ModelScores:
    """Metrics of one model on each of K pairs.

    Attributes:
        metrics: K values by metric. The accuracy is missing if all pairs are ties.
        prompts: K labels; pairs with one prompt have one label.
    """

    metrics: Mapping[str, Sequence[float]]
    prompts: Sequence[int]

    @property
    def clusters(self) -> Sequence[int] | None:
        """Labels of the prompts; None if no prompt repeats."""
        return self.prompts if len(set(self.prompts)) < len(self.prompts) else None


def compare(
    first: ModelScores, second: ModelScores, accuracies: Collection[str]
) -> PairedComparison:
    """Compare two models on the same pairs.

    Args:
        first, second: their metrics, on the same pairs in the same order.
        accuracies: names of the metrics that are 1, 0.5 or 0 for each pair.

    Raises:
        ValueError: the pairs are not the same.
    """
    if list(first.prompts) != list(second.prompts):
        raise ValueError("the models were not evaluated on the same pairs")
    clusters = first.clusters
    common = [name for name in first.metrics if name in second.metrics]
    tests, differences = {}, {}
    for name in common:
        both = first.metrics[name], second.metrics[name]
        if name in accuracies:
            tests[name] = compare_accuracies(*both, clusters)
        else:
            values = [one - other for one, other in zip(*both, strict=True)]
            differences[name] = estimate_mean(values, clusters)
    return PairedComparison(tests, differences)


def estimate_mean(
    values: Sequence[float], clusters: Sequence[Hashable] | None = None
) -> MeanEstimate:
    """Return a mean with its cluster-robust 95 % interval.

    The variance of the mean is that of the summed residuals of the clusters (Liang and Zeger 1986),
    with Student's quantile for one degree of freedom less than there are clusters. Without clusters
    this is the usual interval of a paired t test.

    Args:
        values: one per pair, at least one; a metric, or the difference of two models.
        clusters: label of each pair, for example its prompt; None if all pairs are independent.
    """
    pairs = len(values)
    mean = sum(values) / pairs
    residuals = _sums([value - mean for value in values], clusters)
    count = len(residuals)
    if count < 2 or not math.isfinite(mean):
        return MeanEstimate(mean, -math.inf, math.inf, None)
    variance = count / (count - 1) * sum(each * each for each in residuals) / pairs**2
    half = student_quantile(count - 1) * math.sqrt(variance)
    more = None
    if abs(mean) > half:
        more = 0
    elif mean:
        more = more_pairs(pairs, (half / mean) ** 2)
    return MeanEstimate(mean, mean - half, mean + half, more)


def compare_accuracies(
    first: Sequence[float], second: Sequence[float], clusters: Sequence[Hashable] | None = None
) -> Preference:
    """Test whether two models are right about equally many pairs, exactly.

    Without clusters this is McNemar's exact test (McNemar 1947): pairs about which both are right,
    or both wrong, say nothing about the difference, and the others are tosses of a coin. With
    clusters, each cluster is one toss, won by the model that is right about more of its pairs.

    Args:
        first, second: 1, 0.5 for a tie, or 0 for each pair.
        clusters: label of each pair; None if all pairs are independent.
    """
    leads = _sums([one - other for one, other in zip(first, second, strict=True)], clusters)
    ahead, behind = sum(lead > 0 for lead in leads), sum(lead < 0 for lead in leads)
    p = _sign_test(ahead, behind)
    more = None
    if p <= LEVEL:
        more = 0
    elif ahead != behind:
        # The test with continuity correction, |ahead - behind| - 1 >= Z sqrt(ahead + behind), with
        # k times as many pairs; solved for sqrt(k).
        lead, deviation = abs(ahead - behind), Z * math.sqrt(ahead + behind)
        times = ((deviation + math.sqrt(deviation**2 + 4 * lead)) / (2 * lead)) ** 2
        more = more_pairs(len(first), times)
    return Preference(ahead, behind, "pair" if clusters is None else "prompt", p, more)


def more_pairs(pairs: int, times: float) -> int | None:
    """Return how many more pairs make up `times` as many; None if no number would settle it.

    Args:
        pairs: number of pairs there are.
        times: factor that would make the difference significant, if it stays as it is.
    """
    return max(1, math.ceil(pairs * (times - 1))) if times <= _MOST_TIMES else None


def effective_count(values: Sequence[float], clusters: Sequence[Hashable] | None) -> float:
    """Return the number of independent pairs that determine a mean as precisely as these.

    It is the number of pairs divided by the design effect, the factor by which clusters raise the
    variance of the mean (Kish 1965), and scaled down for the few degrees of freedom of that factor
    (Korn and Graubard 1998); at most the number of pairs.
    """
    pairs = len(values)
    if clusters is None or pairs < 2:
        return pairs
    mean = sum(values) / pairs
    plain = sum((value - mean) * (value - mean) for value in values)
    residuals = _sums([value - mean for value in values], clusters)
    clustered = sum(each * each for each in residuals)
    if clustered <= plain:
        return pairs
    few = (Z / student_quantile(max(1, len(residuals) - 1))) ** 2
    return max(1.0, pairs * few * plain / clustered)


def _sums(values: Sequence[float], clusters: Sequence[Hashable] | None) -> Sequence[float]:
    """Return the sum of the values of each cluster."""
    if clusters is None:
        return values
    sums: dict[Hashable, float] = {}
    for value, label in zip(values, clusters, strict=True):
        sums[label] = sums.get(label, 0.0) + value
    return list(sums.values())


def _sign_test(ahead: int, behind: int) -> float:
    """Return the two-sided probability of so uneven a split of fair tosses."""
    tosses = ahead + behind
    tail, term = 0, 1  # exact integers: binomial coefficients of the smaller side
    for count in range(min(ahead, behind) + 1):
        tail += term
        term = term * (tosses - count) // (count + 1)
    # A quotient of integers is rounded once, however large they are.
    return float(min(1.0, 2 * tail / 2**tosses))


@lru_cache
def student_quantile(degrees: int) -> float:
    """Return the value that Student's t exceeds in absolute value with a probability of 5 %.

    From its distribution for a whole number of degrees of freedom (Abramowitz and Stegun 1964,
    26.7.3 and 26.7.4), by bisection; beyond 300 from the expansion of 26.7.5.
    """
    if degrees > 300:
        return Z + (Z**3 + Z) / (4 * degrees)
    low, high = Z, 13.0  # 12.71 with one degree
    for _ in repeat(None, 50):
        middle = (low + high) / 2
        if _within(middle, degrees) < 1 - LEVEL:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _within(t: float, degrees: int) -> float:
    """Return the probability that Student's t lies between -t and t."""
    angle = math.atan(t / math.sqrt(degrees))
    sine, cosine = math.sin(angle), math.cos(angle)
    is_odd = degrees % 2
    term, total = (cosine if is_odd else 1.0), 0.0
    for k in range(2 + is_odd, degrees + 1, 2):
        total += term
        term *= cosine**2 * (k - 1) / k
    return 2 / math.pi * (angle + sine * total) if is_odd else sine * total
