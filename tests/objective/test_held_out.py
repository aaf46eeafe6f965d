"""Tests of held-out metrics against a plain computation, and of intervals by published ones."""

from __future__ import annotations

import math
import statistics

import pytest
import torch
from torch import Tensor

from dpo_cli.intervals import wilson_interval
from dpo_cli.objective.held_out import (
    HELD_OUT_METRICS,
    means,
    score_held_out_pairs,
    summarize,
)
from dpo_cli.objective.logps import Reduction
from dpo_cli.paired import student_quantile
from dpo_cli.profile.objective import Dpo

PAIRS, TIME = 7, 9


def scores() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return log-probs of policy and reference, entropies, and a mask with random lengths."""
    generator = torch.Generator().manual_seed(4)
    policy, reference, entropies = (
        torch.randn(2 * PAIRS, TIME, generator=generator, dtype=torch.float64) for _ in range(3)
    )
    lengths = torch.randint(1, TIME + 1, (2 * PAIRS, 1), generator=generator)
    return policy, reference, entropies.abs(), torch.arange(TIME) < lengths


def plain_metrics(pair: int, beta: float, reduction: Reduction) -> dict[str, float]:
    """Compute the metrics of a pair with lists and loops."""
    policy, reference, entropies, mask = (tensor.tolist() for tensor in scores())

    def tokens(table: list[list[float]], row: int) -> list[float]:
        return [value for value, kept in zip(table[row], mask[row], strict=True) if kept]

    def logp(table: list[list[float]], row: int) -> float:
        return (sum if reduction == "sum" else statistics.mean)(tokens(table, row))  # type: ignore[operator]

    sides = {"chosen": pair, "rejected": PAIRS + pair}
    rewards = {
        side: beta * (logp(policy, row) - logp(reference, row)) for side, row in sides.items()
    }
    margin = rewards["chosen"] - rewards["rejected"]
    log_ratios = {
        side: [p - r for p, r in zip(tokens(policy, row), tokens(reference, row), strict=True)]
        for side, row in sides.items()
    }
    squares = [statistics.mean(d * d / 2 for d in ratios) for ratios in log_ratios.values()]
    entropy = [statistics.mean(tokens(entropies, row)) for row in sides.values()]
    return {
        "loss": math.log1p(math.exp(-margin)),
        "rewards/chosen": rewards["chosen"],
        "rewards/rejected": rewards["rejected"],
        "rewards/margins": margin,
        "rewards/accuracies": float(margin > 0),
        "rewards/ties": 0.0,
        "logps/chosen": logp(policy, sides["chosen"]),
        "logps/rejected": logp(policy, sides["rejected"]),
        "margin_per_token": statistics.mean(log_ratios["chosen"])
        - statistics.mean(log_ratios["rejected"]),
        "kl": statistics.mean(squares),
        "logps/accuracies": float(logp(policy, sides["chosen"]) > logp(policy, sides["rejected"])),
        "ref_logps/accuracies": float(
            logp(reference, sides["chosen"]) > logp(reference, sides["rejected"])
        ),
        "token_logps/chosen": statistics.mean(tokens(policy, sides["chosen"])),
        "entropy": statistics.mean(entropy),
    }


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_metrics_match_a_plain_computation(reduction: Reduction) -> None:
    policy, reference, entropies, mask = scores()
    table = score_held_out_pairs(
        policy, reference, entropies, mask, Dpo(beta=0.7, reduction=reduction)
    )
    assert table.shape == (PAIRS, len(HELD_OUT_METRICS))
    for pair, row in enumerate(table.tolist()):
        expected = plain_metrics(pair, 0.7, reduction)
        assert list(expected) == list(HELD_OUT_METRICS)
        assert row == pytest.approx(list(expected.values()), abs=1e-12)


def test_means_of_groups_add_up_to_the_mean_of_all() -> None:
    table = score_held_out_pairs(*scores(), Dpo(beta=0.7, reduction="mean"))
    parts = [summarize(table[:2]), summarize(table[2:3]), summarize(table[3:])]
    whole = summarize(table)
    assert sum(part["pairs"] for part in parts) == whole["pairs"] == PAIRS
    for name, mean in means(table).items():
        assert whole[name] == mean
        total = sum(part["pairs"] * part[name] for part in parts)
        assert total / PAIRS == pytest.approx(mean, abs=1e-12)


def test_interval_of_a_mean_is_students() -> None:
    table = score_held_out_pairs(*scores(), Dpo(beta=0.7, reduction="mean"))
    summary = summarize(table)
    margins = table[:, HELD_OUT_METRICS.index("margin_per_token")].tolist()
    half_width = student_quantile(PAIRS - 1) * statistics.stdev(margins) / math.sqrt(PAIRS)
    assert summary["margin_per_token/low"] == pytest.approx(
        summary["margin_per_token"] - half_width, rel=1e-3
    )
    assert summary["margin_per_token/high"] == pytest.approx(
        summary["margin_per_token"] + half_width, rel=1e-3
    )


def test_single_pair_has_intervals_of_shares_only() -> None:
    summary = summarize(score_held_out_pairs(*scores(), Dpo(beta=0.7, reduction="mean"))[:1])
    intervals = {name.removesuffix("/low") for name in summary if name.endswith("/low")}
    shares = {"rewards/accuracies", "rewards/ties", "logps/accuracies", "ref_logps/accuracies"}
    assert intervals == shares


def test_a_policy_that_equals_its_reference_has_no_accuracy() -> None:
    policy, _, entropies, mask = scores()
    equal = score_held_out_pairs(policy, policy, entropies, mask, Dpo(beta=0.7, reduction="mean"))
    assert means(equal)["rewards/ties"] == 1.0
    assert not [name for name in summarize(equal) if name.startswith("rewards/accuracies")]
    other = score_held_out_pairs(*scores(), Dpo(beta=0.7, reduction="mean"))
    mixed = means(torch.cat([equal[:2], other[:1]]))
    first = other[0, HELD_OUT_METRICS.index("rewards/accuracies")].item()
    assert mixed["rewards/accuracies"] == pytest.approx((0.5 + 0.5 + first) / 3)


@pytest.mark.parametrize(
    ("share", "count", "expected"),
    [
        # Newcombe 1998, table I, method 3
        (81 / 263, 263, (0.2553, 0.3662)),
        (15 / 148, 148, (0.0624, 0.1605)),
        (0.0, 20, (0.0, 0.1611)),
        (1 / 29, 29, (0.0061, 0.1718)),
        (1.0, 20, (0.8389, 1.0)),
    ],
)
def test_wilson_interval(share: float, count: int, expected: tuple[float, float]) -> None:
    assert wilson_interval(share, count) == pytest.approx(expected, abs=5e-5)
