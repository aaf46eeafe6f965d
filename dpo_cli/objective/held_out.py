"""Metrics of held-out pairs: one row per pair, and their means with confidence intervals.

Shape legend: P or K pairs, S = 2P sequences (chosen first, then rejected), T time, M metrics.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite

import torch
from torch import Tensor

from dpo_cli.intervals import HIGH, LOW, wilson_interval
from dpo_cli.objective.logps import sequence_logps, to_float64_device
from dpo_cli.objective.losses import PAIR_METRICS, drop_undefined_accuracy, score_pairs
from dpo_cli.objective.ties import preferences, rounding_bounds
from dpo_cli.paired import effective_count, estimate_mean
from dpo_cli.profile.objective import Dpo

HELD_OUT_METRICS = (
    *PAIR_METRICS,
    "logps/accuracies",
    "ref_logps/accuracies",
    "token_logps/chosen",
    "entropy",
)
"""`PAIR_METRICS`, and four that only an evaluation computes.

- logps/accuracies, ref_logps/accuracies: 1 if the policy, or the reference, gives chosen a higher
  log-prob than rejected (reduced by `dpo.reduction`), 0.5 if they tie within rounding, else 0.
- token_logps/chosen: mean log-prob of the tokens of chosen under the policy, in nats.
- entropy: mean entropy of the policy's distributions over both responses, in nats per token.
"""

SHARES = frozenset(
    {"rewards/accuracies", "rewards/ties", "logps/accuracies", "ref_logps/accuracies"}
)
"""Metrics that are 0, 0.5 or 1 for each pair."""

_NEED_REFERENCE = ("margin_per_token", "kl", "ref_logps/accuracies")


@torch.no_grad()
def score_held_out_pairs(
    policy: Tensor,
    reference: Tensor,
    entropies: Tensor,
    mask: Tensor,
    dpo: Dpo,
    log_sum_sq_probs: Tensor | None = None,
) -> Tensor:
    """Return `HELD_OUT_METRICS` of each pair.

    Args:
        policy, reference: (S, T), log-probs of tokens in nats.
        entropies: (S, T), of the policy's distributions, in nats.
        mask: (S, T) bool, the response mask.
        dpo, log_sum_sq_probs: see `score_pairs`.

    Returns:
        (P, M) float64; NaN for metrics that need a reference if the loss uses none.
    """
    policy, reference, entropies, mask = map(
        to_float64_device, (policy, reference, entropies, mask)
    )
    scores = score_pairs(policy, reference, mask, dpo, log_sum_sq_probs)
    ref_chosen, ref_rejected = sequence_logps(reference, mask, dpo.reduction).chunk(2)
    undefined = torch.full_like(scores.losses, torch.nan)
    ref_accuracies = (
        preferences(ref_chosen - ref_rejected, rounding_bounds((reference,), mask, dpo.reduction))
        if dpo.needs_reference
        else undefined
    )
    logp_differences = scores.logps_chosen - scores.logps_rejected
    chosen_entropies, rejected_entropies = sequence_logps(entropies, mask, "mean").chunk(2)
    columns = (
        *(undefined if metric is None else metric for metric in scores.metrics()),
        preferences(logp_differences, rounding_bounds((policy,), mask, dpo.reduction)),
        ref_accuracies,
        sequence_logps(policy, mask, "mean").chunk(2)[0],
        (chosen_entropies + rejected_entropies) / 2,
    )
    return torch.stack([column.double() for column in columns], dim=1)


def means(table: Tensor) -> dict[str, float]:
    """Return the mean over pairs of each defined metric.

    A metric that needs a reference is left out if it is NaN for every pair. If the loss is NaN too,
    the policy itself has failed, and the metric stays, so that the failure is visible. If all pairs
    tie, the accuracy is left out, too.

    Args:
        table: (K, M), from `score_held_out_pairs`.
    """
    by_name = dict(zip(HELD_OUT_METRICS, table.mean(dim=0).tolist(), strict=True))
    is_nan = dict(zip(HELD_OUT_METRICS, table.isnan().all(dim=0).tolist(), strict=True))
    for name in _NEED_REFERENCE:
        if is_nan[name] and not is_nan["loss"]:
            del by_name[name]
    drop_undefined_accuracy(by_name)
    return by_name


def summarize(table: Tensor, prompts: Sequence[int] | None = None) -> dict[str, float]:
    """Return means over K pairs, their 95 % intervals as NAME/low and NAME/high, and "pairs".

    An interval is the uncertainty of the mean over other pairs from the same source. A share has a
    Wilson interval, which is valid for few pairs and near 0 and 1. Other metrics have Student's
    interval, which is not defined for a single prompt. Pairs with the same prompt count as a
    cluster in both.

    Args:
        table: (K, M), from `score_held_out_pairs`.
        prompts: label of each pair's prompt; None if no prompt repeats.
    """
    pairs = len(table)
    summary = {"pairs": float(pairs)}
    columns = dict(zip(HELD_OUT_METRICS, table.T, strict=True))
    for name, mean in means(table).items():
        summary[name] = mean
        values = columns[name].tolist()
        if name in SHARES:
            count = effective_count(values, prompts)
            summary[name + LOW], summary[name + HIGH] = wilson_interval(mean, count)
        elif isfinite((estimate := estimate_mean(values, prompts)).low):
            summary[name + LOW], summary[name + HIGH] = estimate.low, estimate.high
    return summary
