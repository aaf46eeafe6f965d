"""Comparisons pair by pair: published numbers, and coverage over 10,000 simulated samples."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable, Sequence

import pytest

from dpo_cli.intervals import wilson_interval
from dpo_cli.paired import (
    ModelScores,
    compare,
    compare_accuracies,
    effective_count,
    estimate_mean,
    student_quantile,
)

DRAWS = 10_000


@pytest.mark.parametrize(
    ("degrees", "value"),
    [  # Abramowitz and Stegun 1964, table 26.10
        (1, 12.706),
        (2, 4.303),
        (3, 3.182),
        (10, 2.228),
        (30, 2.042),
        (120, 1.980),
        (301, 1.968),
    ],
)
def test_quantiles_of_student(degrees: int, value: float) -> None:
    assert student_quantile(degrees) == pytest.approx(value, abs=5e-4)


def split(ahead: int, behind: int, agreed: int) -> tuple[list[float], list[float]]:
    first = [1.0] * ahead + [0.0] * behind + [1.0] * agreed
    second = [0.0] * ahead + [1.0] * behind + [1.0] * agreed
    return first, second


def binomial_p(ahead: int, behind: int) -> float:
    tosses, least = ahead + behind, min(ahead, behind)
    tail = sum(math.comb(tosses, count) for count in range(least + 1)) / 2**tosses
    return min(1.0, 2 * tail)


@pytest.mark.parametrize(
    ("ahead", "behind", "p"),
    [(10, 2, 0.0386), (6, 0, 0.03125), (5, 0, 0.0625), (0, 0, 1.0), (7, 7, 1.0)],
)
def test_mcnemar_is_exact(ahead: int, behind: int, p: float) -> None:
    for agreed in (0, 1000):  # pairs on which both models agree do not count
        test = compare_accuracies(*split(ahead, behind, agreed))
        assert (test.ahead, test.behind, test.unit) == (ahead, behind, "pair")
        assert test.p == pytest.approx(p, abs=5e-5)
        assert test.p == pytest.approx(binomial_p(ahead, behind))


@pytest.mark.parametrize(("ahead", "behind"), [(8, 5), (12, 8), (30, 20), (4, 1), (110, 90)])
def test_number_of_pairs_that_would_make_a_difference_significant(ahead: int, behind: int) -> None:
    test = compare_accuracies(*split(ahead, behind, 100))
    assert not test.is_significant
    assert test.more_pairs is not None
    times = 1 + test.more_pairs / (100 + ahead + behind)
    assert binomial_p(round(ahead * times * 1.1), round(behind * times * 1.1)) < 0.055
    assert binomial_p(round(ahead * times * 0.85), round(behind * times * 0.85)) > 0.045
    settled = compare_accuracies(*split(ahead * 20, behind * 20, 0))
    assert settled.more_pairs == 0
    for near in ((5, 5), (51, 49)):
        assert compare_accuracies(*split(*near, 90)).more_pairs is None


def test_a_repeated_prompt_counts_once() -> None:
    """Ten pairs with one prompt count as one observation."""
    first, second = split(10, 0, 0)
    assert compare_accuracies(first, second).is_significant
    test = compare_accuracies(first, second, [0] * 10)
    assert (test.ahead, test.behind, test.unit, test.p) == (1, 0, "prompt", 1.0)
    mixed = compare_accuracies([1, 1, 0, 0.5], [0, 0, 1, 1], [0, 0, 0, 1])
    assert (mixed.ahead, mixed.behind) == (1, 1)


def test_interval_of_a_mean_is_that_of_a_paired_t_test() -> None:
    values = [1.0, 2.0, 4.0, 4.5, 7.0]
    estimate = estimate_mean(values)
    half = 2.776445 * statistics.stdev(values) / math.sqrt(5)
    assert (estimate.low, estimate.high) == pytest.approx((3.7 - half, 3.7 + half))
    assert estimate.is_significant
    assert estimate.more_pairs == 0
    apart = estimate_mean([2.0, -1.0, 1.0, 0.0])
    assert not apart.is_significant
    assert apart.more_pairs == math.ceil(4 * ((apart.high - apart.mean) / apart.mean) ** 2 - 4)
    assert estimate_mean([2.0, -1.0, 1.0, -1.5]).more_pairs is None  # 441 times as many
    single = estimate_mean([1.0, 2.0], [0, 0])
    assert (single.low, single.high, single.more_pairs) == (-math.inf, math.inf, None)
    assert estimate_mean([math.nan, 1.0]).low == -math.inf


def test_copies_of_a_pair_narrow_no_interval() -> None:
    values = [0.3, -0.1, 0.7, 0.2, 0.9, 0.4]
    plain = estimate_mean(values)
    labels = list(range(6))
    copied = estimate_mean(values * 3, labels * 3)
    assert (copied.mean, copied.low) == pytest.approx((plain.mean, plain.low))
    assert estimate_mean(values * 3).low > plain.low
    assert effective_count([1.0, 0, 1, 1] * 50, None) == 200
    assert effective_count([1.0, 0, 1, 1] * 50, list(range(4)) * 50) < 4


def test_both_models_must_be_scored_on_the_same_pairs() -> None:
    one = ModelScores({"loss": [0.1, 0.2], "a": [1, 0]}, [0, 1])
    other = ModelScores({"loss": [0.3, 0.1], "a": [1, 1], "kl": [0, 0]}, [0, 1])
    result = compare(one, other, ["a"])
    assert result.differences["loss"].mean == pytest.approx(-0.05)
    assert set(result.differences) == {"loss"}
    assert (result.accuracies["a"].ahead, result.accuracies["a"].behind) == (0, 1)
    with pytest.raises(ValueError, match="same pairs"):
        compare(one, ModelScores(other.metrics, [0, 0]), ["a"])


Sample = tuple[Sequence[float], Sequence[int] | None]


def paired_losses(draw: random.Random) -> Sample:
    """Return differences of the losses of two runs on 40 pairs: skewed, most of them small."""
    return [draw.gauss(0.02, 0.1) + 0.05 * (draw.expovariate(1) - 1) for _ in range(40)], None


def losses_of_prompts(draw: random.Random) -> Sample:
    """Return 25 prompts with one to four pairs each; half of the variance is between prompts."""
    values, labels = [], []
    for prompt in range(25):
        shared = draw.gauss(0.02, 0.1)
        for _ in range(1 + prompt % 4):
            values.append(shared + draw.gauss(0, 0.1))
            labels.append(prompt)
    return values, labels


def coverage(
    sample: Callable[[random.Random], Sample],
    interval: Callable[[Sequence[float], Sequence[int] | None], tuple[float, float]],
    truth: float,
) -> float:
    """Return the share of the intervals that contain the true mean."""
    draw, hits = random.Random(1), 0
    for _ in range(DRAWS):
        low, high = interval(*sample(draw))
        hits += low <= truth <= high
    return hits / DRAWS


def of_mean(values: Sequence[float], labels: Sequence[int] | None) -> tuple[float, float]:
    estimate = estimate_mean(values, labels)
    return estimate.low, estimate.high


def of_share(values: Sequence[float], labels: Sequence[int] | None) -> tuple[float, float]:
    return wilson_interval(sum(values) / len(values), effective_count(values, labels))


def answers_of_prompts(draw: random.Random) -> Sample:
    """Return 50 prompts with one to three pairs each; prompts differ in accuracy."""
    values, labels = [], []
    for prompt in range(50):
        share = draw.betavariate(2.4, 1.6)
        for _ in range(1 + prompt % 3):
            values.append(float(draw.random() < share))
            labels.append(prompt)
    return values, labels


@pytest.mark.parametrize(
    ("sample", "interval", "truth"),
    [
        (paired_losses, of_mean, 0.02),
        (losses_of_prompts, of_mean, 0.02),
        (answers_of_prompts, of_share, 0.6),
    ],
)
def test_19_of_20_intervals_contain_the_truth(
    sample: Callable[[random.Random], Sample],
    interval: Callable[[Sequence[float], Sequence[int] | None], tuple[float, float]],
    truth: float,
) -> None:
    assert 0.94 <= coverage(sample, interval, truth) <= 0.96


def test_without_clusters_too_few_intervals_would_contain_the_truth() -> None:
    """Intervals that treat the same pairs as independent are too narrow."""
    assert coverage(losses_of_prompts, lambda values, _: of_mean(values, None), 0.02) < 0.92


def test_equal_models_differ_significantly_in_at_most_1_of_20_samples() -> None:
    draw, found = random.Random(2), 0
    for _ in range(DRAWS):
        ahead = sum(draw.random() < 0.5 for _ in range(20))
        found += binomial_p(ahead, 20 - ahead) <= 0.05
        if not _ % 100:
            first, second = split(ahead, 20 - ahead, 5)
            assert compare_accuracies(first, second).p == pytest.approx(
                binomial_p(ahead, 20 - ahead)
            )
    assert 0.02 < found / DRAWS <= 0.05
