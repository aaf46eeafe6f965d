"""What held-out pairs say of a policy: figures of each pair, and what they come to together.

Shape legend: P or K pairs, S = 2P sequences (chosen first, then rejected), F figures.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dpo_cli.intervals import Z, wilson_interval
from dpo_cli.objective.logps import sequence_logps
from dpo_cli.objective.losses import FIGURES, score_pairs
from dpo_cli.objective.ties import is_preferred
from dpo_cli.profile.objective import Dpo

HELD_OUT_FIGURES = (
    *FIGURES,
    "logps/accuracies",
    "ref_logps/accuracies",
    "token_logps/chosen",
    "entropy",
)
"""`FIGURES`, and beside them: whether the policy finds chosen likelier than rejected, and whether
the reference does (the log-probs of a response reduced as in the loss; a tie within rounding is
no); the log-prob of chosen, and the entropy of the policy's distribution, in nats per response
token."""

SHARES = frozenset({"rewards/accuracies", "logps/accuracies", "ref_logps/accuracies"})
"""Figures that are 0 or 1 for a pair."""

LOW, HIGH = "/low", "/high"
"""Endings of the names of an interval's ends."""


@torch.no_grad()
def score_held_out_pairs(
    policy: Tensor,
    reference: Tensor,
    entropies: Tensor,
    mask: Tensor,
    dpo: Dpo,
    log_sum_sq_probs: Tensor | None = None,
) -> Tensor:
    """`HELD_OUT_FIGURES` of each pair.

    Args:
        policy, reference: (S, time), log-probs of tokens.
        entropies: (S, time), the policy's.
        mask: (S, time), true where a token belongs to the response.
        dpo, log_sum_sq_probs: see `score_pairs`.

    Returns:
        (P, F), float64; NaN for what there is not without a reference.
    """
    scores = score_pairs(policy, reference, mask, dpo, log_sum_sq_probs)
    ref_chosen, ref_rejected = sequence_logps(reference, mask, dpo.reduction).chunk(2)
    unknown = torch.full_like(scores.losses, torch.nan)
    ref_accuracies = (
        is_preferred(ref_chosen - ref_rejected, (reference,), mask, dpo.reduction)
        if dpo.needs_reference
        else unknown
    )
    logp_differences = scores.logps_chosen - scores.logps_rejected
    chosen_entropies, rejected_entropies = sequence_logps(entropies, mask, "mean").chunk(2)
    columns = (
        *(unknown if figure is None else figure for figure in scores.figures()),
        is_preferred(logp_differences, (policy,), mask, dpo.reduction),
        ref_accuracies,
        sequence_logps(policy, mask, "mean").chunk(2)[0],
        (chosen_entropies + rejected_entropies) / 2,
    )
    return torch.stack([column.double() for column in columns], dim=1)


def means(table: Tensor) -> dict[str, float]:
    """The mean over K pairs of each of `HELD_OUT_FIGURES` that there is, from (K, F)."""
    means = dict(zip(HELD_OUT_FIGURES, table.mean(dim=0).tolist(), strict=True))
    is_missing = dict(zip(HELD_OUT_FIGURES, table.isnan().all(dim=0).tolist(), strict=True))
    needs_reference = ("gap", "kl", "ref_logps/accuracies")
    for name in needs_reference:
        if is_missing[name] and not is_missing["loss"]:
            del means[name]
    return means


def summarize(table: Tensor) -> dict[str, float]:
    """Means over K pairs, the ends of their 95 % intervals as NAME/low and NAME/high, and "pairs".

    The intervals say how far pairs drawn anew from the same source would move the mean. A share has
    Wilson's, which holds for few pairs and near 0 and 1 too; any other figure the normal one, which
    is a little narrow below some 30 pairs, and which a single pair does not have.

    Args:
        table: (K, F), from `score_held_out_pairs`.
    """
    pairs = len(table)
    summary = {"pairs": float(pairs)}
    columns = dict(zip(HELD_OUT_FIGURES, table.T, strict=True))
    for name, mean in means(table).items():
        column = columns[name]
        summary[name] = mean
        if name in SHARES:
            summary[name + LOW], summary[name + HIGH] = wilson_interval(mean, pairs)
        elif pairs > 1:
            reach = Z * float(column.std()) / pairs**0.5
            summary[name + LOW], summary[name + HIGH] = mean - reach, mean + reach
    return summary
