"""What held-out pairs say of a policy: figures of each pair, and what they come to together.

Shape legend: P or K pairs, S = 2P sequences (chosen first, then rejected), F figures.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dpo_cli.objective.logps import Reduction, sequence_logps
from dpo_cli.objective.losses import FIGURES, score_pairs

HELD_OUT_FIGURES = (
    *FIGURES,
    "logps/accuracies",
    "ref_logps/accuracies",
    "token_logps/chosen",
    "entropy",
)
"""`FIGURES`, and beside them: whether the policy finds chosen likelier than rejected, and whether
the reference does (the log-probs of a response reduced as in the loss; a tie is no); the log-prob
of chosen, and the entropy of the policy's distribution, in nats per response token."""

SHARES = frozenset({"rewards/accuracies", "logps/accuracies", "ref_logps/accuracies"})
"""Figures that are 0 or 1 for a pair."""

LOW, HIGH = "/low", "/high"
"""Endings of the names of an interval's ends."""

_Z = 1.959963984540054
"""Standard deviations of a normal distribution around 95 % of it."""


@torch.no_grad()
def score_held_out_pairs(
    policy: Tensor,
    reference: Tensor,
    entropies: Tensor,
    mask: Tensor,
    *,
    beta: float,
    reduction: Reduction,
) -> Tensor:
    """`HELD_OUT_FIGURES` of each pair.

    Args:
        policy, reference: (S, time), log-probs of tokens.
        entropies: (S, time), the policy's.
        mask: (S, time), true where a token belongs to the response.
        beta, reduction: of the loss.

    Returns:
        (P, F), float64.
    """
    scores = score_pairs(policy, reference, mask, beta=beta, reduction=reduction)
    ref_chosen, ref_rejected = sequence_logps(reference, mask, reduction).chunk(2)
    chosen_entropies, rejected_entropies = sequence_logps(entropies, mask, "mean").chunk(2)
    columns = (
        *scores.figures(),
        scores.logps_chosen > scores.logps_rejected,
        ref_chosen > ref_rejected,
        sequence_logps(policy, mask, "mean").chunk(2)[0],
        (chosen_entropies + rejected_entropies) / 2,
    )
    return torch.stack([column.double() for column in columns], dim=1)


def means(table: Tensor) -> dict[str, float]:
    """The mean of each of `HELD_OUT_FIGURES` over K pairs, from (K, F)."""
    return dict(zip(HELD_OUT_FIGURES, table.mean(dim=0).tolist(), strict=True))


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
    for name, mean, column in zip(HELD_OUT_FIGURES, means(table).values(), table.T, strict=True):
        summary[name] = mean
        if name in SHARES:
            summary[name + LOW], summary[name + HIGH] = wilson_interval(mean, pairs)
        elif pairs > 1:
            reach = _Z * float(column.std()) / pairs**0.5
            summary[name + LOW], summary[name + HIGH] = mean - reach, mean + reach
    return summary


def wilson_interval(share: float, count: int) -> tuple[float, float]:
    """The 95 % score interval of a share (Wilson 1927).

    Args:
        share: that was seen, 0 to 1.
        count: of how many, at least 1.
    """
    weight = _Z * _Z / count
    middle = (share + weight / 2) / (1 + weight)
    reach = (weight * share * (1 - share) + weight * weight / 4) ** 0.5 / (1 + weight)
    return max(0.0, middle - reach), min(1.0, middle + reach)
