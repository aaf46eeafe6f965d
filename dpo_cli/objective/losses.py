"""The loss of a batch of pairs and the figures that go with it.

Direct Preference Optimization (Rafailov et al. 2023, arXiv:2305.18290) is the default; the formulas
are in `dpo_cli.objective.formulas`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dpo_cli.objective.formulas import FORMULAS, Pairs, divergence_scores
from dpo_cli.objective.logps import sequence_logps
from dpo_cli.objective.ties import is_preferred
from dpo_cli.profile.objective import Dpo

FIGURES = (
    "loss",
    "rewards/chosen",
    "rewards/rejected",
    "rewards/margins",
    "rewards/accuracies",
    "logps/chosen",
    "logps/rejected",
    "gap",
    "kl",
)
"""What a pair comes to, under the names that the events use."""


@dataclass(frozen=True)
class PairScores:
    """What a batch of P pairs came to; every field is (P,), and only `losses` carries gradients.

    `rewards_*` is beta * (policy logps - reference logps), the implicit reward of eq. 5, whatever
    the loss; its margin is chosen minus rejected. `accuracies` is 1.0 where that is positive by
    more than rounding (`dpo_cli.objective.ties`), else 0.0: a tie is not accurate. `gaps` is how
    much further apart the policy holds the two responses than the reference does, and `kls` how far
    it has drifted from it on both; these two are in nats per response token, whatever beta and the
    reduction are, so that runs can be compared by them. With a loss that needs no reference there
    are neither, and a reward is beta * policy logps (SimPO, eq. 4).
    """

    losses: Tensor
    rewards_chosen: Tensor
    rewards_rejected: Tensor
    accuracies: Tensor
    logps_chosen: Tensor
    logps_rejected: Tensor
    gaps: Tensor | None
    kls: Tensor | None

    @property
    def margins(self) -> Tensor:
        """(P,), the reward of chosen minus that of rejected."""
        return self.rewards_chosen - self.rewards_rejected

    def figures(self) -> tuple[Tensor | None, ...]:
        """Each of `FIGURES`, (P,); None of one that there is not."""
        return (
            self.losses,
            self.rewards_chosen,
            self.rewards_rejected,
            self.margins,
            self.accuracies,
            self.logps_chosen,
            self.logps_rejected,
            self.gaps,
            self.kls,
        )

    def sums(self) -> dict[str, Tensor]:
        """Each of `FIGURES` that there is, summed over the pairs."""
        named = zip(FIGURES, self.figures(), strict=True)
        return {name: figure.detach().sum() for name, figure in named if figure is not None}


def score_pairs(
    policy: Tensor,
    reference: Tensor,
    mask: Tensor,
    dpo: Dpo,
    log_sum_sq_probs: Tensor | None = None,
) -> PairScores:
    """Losses and rewards of a batch.

    The drift is estimated token by token as half the squared log-ratio (Schulman 2020,
    "Approximating KL divergence", k2), which approaches the KL divergence as the two models do. The
    unbiased estimator of that note is for samples of the policy itself; on the data's responses,
    which DPO makes unlikely, a single token would send it to thousands of nats.

    Args:
        policy, reference: (2P, time), log-probs of tokens, the P chosen sequences first; zeros
            where the loss needs no reference.
        mask: (2P, time), true where a token belongs to the response.
        dpo: the profile's table.
        log_sum_sq_probs: (2P, time), the policy's; with `dpo.use_weighting` only, see
            `pair_weights`.

    Raises:
        ValueError: they are missing.
    """
    tokens = mask.sum(dim=-1).clamp(min=1)
    divisor = tokens if dpo.reduction == "mean" else torch.ones_like(tokens)
    plain_sums = policy_sums = sequence_logps(policy, mask, "sum")
    reference_sums = sequence_logps(reference, mask, "sum")
    with torch.no_grad():
        logps_chosen, logps_rejected = (policy_sums / divisor).chunk(2)
        ratios = (policy_sums - reference_sums) / divisor
        rewards_chosen, rewards_rejected = (dpo.beta * ratios).chunk(2)
        ratios_chosen, ratios_rejected = ratios.chunk(2)
        summed = (policy, reference) if dpo.needs_reference else (policy,)
        accuracies = is_preferred(ratios_chosen - ratios_rejected, summed, mask, dpo.reduction)
        gaps, kls = _drift(policy, reference, mask) if dpo.needs_reference else (None, None)
    if dpo.ld_alpha is not None:
        token_weights = length_weights(mask, dpo.ld_alpha)
        policy_sums = sequence_logps(policy * token_weights, mask, "sum")
        reference_sums = sequence_logps(reference * token_weights, mask, "sum")
    policy_chosen, policy_rejected = (policy_sums / divisor).chunk(2)
    reference_chosen, reference_rejected = (reference_sums / divisor).chunk(2)
    scores = divergence_scores(policy_sums - reference_sums, dpo) / divisor
    scores_chosen, scores_rejected = scores.chunk(2)
    pairs = Pairs(
        policy_chosen=policy_chosen,
        policy_rejected=policy_rejected,
        reference_chosen=reference_chosen,
        reference_rejected=reference_rejected,
        scores_chosen=scores_chosen,
        scores_rejected=scores_rejected,
        chosen_sums=plain_sums.chunk(2)[0],
        chosen_tokens=tokens.chunk(2)[0],
    )
    losses = pair_losses(pairs, dpo)
    if dpo.use_weighting:
        if log_sum_sq_probs is None:
            raise ValueError("dpo.use_weighting needs log_sum_sq_probs")
        losses = losses * pair_weights(policy, log_sum_sq_probs, mask)
    return PairScores(
        losses=losses,
        rewards_chosen=rewards_chosen,
        rewards_rejected=rewards_rejected,
        accuracies=accuracies.to(ratios.dtype),
        logps_chosen=logps_chosen,
        logps_rejected=logps_rejected,
        gaps=gaps,
        kls=kls,
    )


def pair_losses(pairs: Pairs, dpo: Dpo) -> Tensor:
    """(P,), the weighted sum of the profile's losses."""
    terms = [weight * FORMULAS[name](pairs, dpo) for name, weight in dpo.losses.items()]
    return torch.stack(terms).sum(dim=0)


def loss_at_start(dpo: Dpo) -> float | None:
    """The loss where policy and reference agree, ln 2 for DPO; None where that is not known
    beforehand: it depends on the policy's own log-probs.
    """
    if not dpo.has_known_start:
        return None
    nothing = torch.zeros(1, dtype=torch.float64)
    return pair_losses(Pairs(*[nothing] * 8), dpo).item()


def length_weights(mask: Tensor, alpha: float) -> Tensor:
    """LD-DPO, Liu et al. 2024, arXiv:2409.06411: what a longer response has more than the other one
    of its pair counts `alpha` times only.

    Args:
        mask: (2P, time), true where a token belongs to the response.
        alpha: 1 is plain DPO, 0 cuts both responses to the same length.

    Returns:
        (2P, time) float64, 1 or `alpha`.
    """
    shared = mask.sum(dim=-1).view(2, -1).amin(dim=0).repeat(2)
    is_beyond = mask.cumsum(dim=-1) > shared.unsqueeze(-1)
    return torch.ones_like(mask, dtype=torch.float64).masked_fill(is_beyond, alpha)


@torch.no_grad()
def pair_weights(policy: Tensor, log_sum_sq_probs: Tensor, mask: Tensor) -> Tensor:
    """WPO, Zhou et al. 2024, arXiv:2406.11827, eq. 2, with the weights aligned by what a sample of
    the policy would have: pairs that the policy itself might have written count more.

    Args:
        policy: (2P, time), log-probs of tokens.
        log_sum_sq_probs: (2P, time), the logarithm of the sum of all squared probabilities where
            each token is predicted: its expected probability, were it sampled.
        mask: (2P, time), true where a token belongs to the response.

    Returns:
        (P,), the product over both responses of exp(mean over tokens of the difference of the two).
    """
    aligned = sequence_logps(policy - log_sum_sq_probs, mask, "mean")
    return aligned.view(2, -1).sum(dim=0).exp()


def _drift(policy: Tensor, reference: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    drift = (policy - reference).double()
    chosen_drift, rejected_drift = sequence_logps(drift, mask, "mean").chunk(2)
    chosen_kl, rejected_kl = sequence_logps(drift.square() / 2, mask, "mean").chunk(2)
    return chosen_drift - rejected_drift, (chosen_kl + rejected_kl) / 2
