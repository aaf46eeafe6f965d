"""The DPO loss and the figures that go with it (Rafailov et al. 2023, arXiv:2305.18290)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from dpo_cli.objective.logps import Reduction, sequence_logps

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

    `rewards_*` is beta * (policy logps - reference logps), the implicit reward of eq. 5; its
    margin is chosen minus rejected, and a pair counts as accurate where that is positive. `gaps`
    is how much further apart the policy holds the two responses than the reference does, and `kls`
    how far it has drifted from it on both; these two are in nats per response token, whatever
    beta and the reduction are, so that runs can be compared by them.
    """

    losses: Tensor
    rewards_chosen: Tensor
    rewards_rejected: Tensor
    logps_chosen: Tensor
    logps_rejected: Tensor
    gaps: Tensor
    kls: Tensor

    @property
    def margins(self) -> Tensor:
        """(P,), the reward of chosen minus that of rejected."""
        return self.rewards_chosen - self.rewards_rejected

    @property
    def accuracies(self) -> Tensor:
        """(P,), 1.0 where the policy has moved towards chosen, else 0.0."""
        return (self.margins > 0).to(self.margins.dtype)

    def figures(self) -> tuple[Tensor, ...]:
        """Each of `FIGURES`, (P,)."""
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
        """Each of `FIGURES`, summed over the pairs."""
        named = zip(FIGURES, self.figures(), strict=True)
        return {name: figure.detach().sum() for name, figure in named}


def dpo_losses(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    beta: float,
) -> Tensor:
    """The loss of each pair, eq. 7: -log sigmoid(beta * (policy margin - reference margin)).

    With u = beta * ((policy_c - policy_r) - (reference_c - reference_r)) its derivative by the
    chosen log-prob is -beta * sigmoid(-u), and by the rejected one the opposite; at the start the
    policy is the reference, u = 0, and the loss is ln 2 = 0.693 with a slope of beta / 2.

    Args:
        policy_chosen, policy_rejected: (P,), sequence log-probs in nats, with gradients.
        reference_chosen, reference_rejected: (P,), those of the frozen reference.
        beta: strength of the pull towards the reference, > 0.

    Returns:
        (P,), in nats.
    """
    policy_margins = policy_chosen - policy_rejected
    reference_margins = reference_chosen - reference_rejected
    return -F.logsigmoid(beta * (policy_margins - reference_margins))


def score_pairs(
    policy: Tensor, reference: Tensor, mask: Tensor, *, beta: float, reduction: Reduction
) -> PairScores:
    """Losses and rewards of a batch.

    The drift is estimated token by token as half the squared log-ratio (Schulman 2020,
    "Approximating KL divergence", k2), which approaches the KL divergence as the two models do. The
    unbiased estimator of that note is for samples of the policy itself; on the data's responses,
    which DPO makes unlikely, a single token would send it to thousands of nats.

    Args:
        policy, reference: (2P, time), log-probs of tokens, the P chosen sequences first.
        mask: (2P, time), true where a token belongs to the response.
        beta: see `dpo_losses`.
        reduction: how the log-probs of a response become one number.
    """
    policy_chosen, policy_rejected = sequence_logps(policy, mask, reduction).chunk(2)
    reference_chosen, reference_rejected = sequence_logps(reference, mask, reduction).chunk(2)
    with torch.no_grad():
        drift = (policy - reference).double()
        chosen_drift, rejected_drift = sequence_logps(drift, mask, "mean").chunk(2)
        chosen_kl, rejected_kl = sequence_logps(drift.square() / 2, mask, "mean").chunk(2)
        rewards_chosen = beta * (policy_chosen - reference_chosen)
        rewards_rejected = beta * (policy_rejected - reference_rejected)
    return PairScores(
        losses=dpo_losses(
            policy_chosen, policy_rejected, reference_chosen, reference_rejected, beta
        ),
        rewards_chosen=rewards_chosen,
        rewards_rejected=rewards_rejected,
        logps_chosen=policy_chosen.detach(),
        logps_rejected=policy_rejected.detach(),
        gaps=chosen_drift - rejected_drift,
        kls=(chosen_kl + rejected_kl) / 2,
    )
