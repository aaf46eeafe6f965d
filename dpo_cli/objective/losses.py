"""Loss of a batch of pairs, and the metrics of each pair.

Direct Preference Optimization (Rafailov et al. 2023, arXiv:2305.18290) is the default; see
`dpo_cli.objective.formulas` for all losses.

Shape legend: P pairs, 2P sequences (the P chosen first, then the P rejected), T time.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dpo_cli.objective.formulas import FORMULAS, Pairs, divergence_scores
from dpo_cli.objective.logps import sequence_logps, to_float64_device
from dpo_cli.objective.ties import is_tied, preferences, rounding_bounds
from dpo_cli.profile.objective import Dpo

PAIR_METRICS = (
    "loss",
    "rewards/chosen",
    "rewards/rejected",
    "rewards/margins",
    "rewards/accuracies",
    "rewards/ties",
    "logps/chosen",
    "logps/rejected",
    "margin_per_token",
    "kl",
)
"""Names of a pair's metrics in events, in the order of `PairScores.metrics`."""


@dataclass(frozen=True)
class PairScores:
    """Losses and metrics of P pairs; every field is (P,), and only `losses` carries gradients.

    Attributes:
        losses: one per pair; their mean is the loss of the batch.
        rewards_chosen, rewards_rejected: the implicit reward of DPO, eq. 5, whatever the loss:
            beta * (policy log-prob - reference log-prob). With a loss that uses no reference, beta
            * policy log-prob (SimPO, eq. 4).
        accuracies: 1 where the margin is positive by more than rounding, 0.5 where it is within
            rounding of 0, and 0 elsewhere (`dpo_cli.objective.ties`).
        ties: 1 where the margin is within rounding of 0, else 0.
        logps_chosen, logps_rejected: the policy's log-prob, summed or averaged by `dpo.reduction`.
        margins_per_token: mean log-ratio of policy and reference per token of chosen, minus that of
            rejected, in nats. None with a loss that uses no reference.
        kl: estimated KL divergence of the policy from the reference, in nats per response token;
            mean of both responses. None with a loss that uses no reference.

    `margins_per_token` and `kl` depend neither on beta nor on the reduction, so they are comparable
    between runs.
    """

    losses: Tensor
    rewards_chosen: Tensor
    rewards_rejected: Tensor
    accuracies: Tensor
    ties: Tensor
    logps_chosen: Tensor
    logps_rejected: Tensor
    margins_per_token: Tensor | None
    kl: Tensor | None

    @property
    def margins(self) -> Tensor:
        """Reward of chosen minus reward of rejected, (P,)."""
        return self.rewards_chosen - self.rewards_rejected

    def metrics(self) -> tuple[Tensor | None, ...]:
        """Return each of `PAIR_METRICS`, (P,); None for a metric that needs a reference."""
        return (
            self.losses,
            self.rewards_chosen,
            self.rewards_rejected,
            self.margins,
            self.accuracies,
            self.ties,
            self.logps_chosen,
            self.logps_rejected,
            self.margins_per_token,
            self.kl,
        )

    def metric_sums(self) -> dict[str, Tensor]:
        """Return the sum over the pairs of each of `PAIR_METRICS` that is defined."""
        named = zip(PAIR_METRICS, self.metrics(), strict=True)
        defined = {name: metric.detach() for name, metric in named if metric is not None}
        sums = torch.stack(list(defined.values())).sum(dim=1)
        return dict(zip(defined, sums.unbind(), strict=True))


def score_pairs(
    policy: Tensor,
    reference: Tensor,
    mask: Tensor,
    dpo: Dpo,
    log_sum_sq_probs: Tensor | None = None,
) -> PairScores:
    """Return the losses and metrics of a batch.

    The KL divergence is estimated per token as half the squared log-ratio (Schulman 2020,
    "Approximating KL divergence", estimator k2), which approaches the KL divergence as the two
    models approach each other. The unbiased estimator k3 of that note assumes samples of the
    policy. Here the responses come from the data, and DPO makes the rejected ones unlikely: a
    single token would raise k3 to thousands of nats.

    Everything here is float64, on the CPU if the device has none.

    Args:
        policy, reference: (2P, T), log-probs of tokens in nats; zeros for the reference if the loss
            uses none.
        mask: (2P, T) bool, the response mask.
        dpo: the profile's [dpo] table.
        log_sum_sq_probs: (2P, T), of the policy; required by `dpo.use_weighting`, see
            `pair_weights`.

    Raises:
        ValueError: `dpo.use_weighting` is set, but `log_sum_sq_probs` is missing.
    """
    policy, reference, mask = map(to_float64_device, (policy, reference, mask))
    tokens = mask.sum(dim=-1).clamp(min=1)
    divisor = tokens if dpo.reduction == "mean" else torch.ones_like(tokens)
    plain_sums = policy_sums = sequence_logps(policy, mask, "sum")
    reference_sums = sequence_logps(reference, mask, "sum")
    # Metrics always come from the plain sums, so that they mean the same under every loss.
    with torch.no_grad():
        logps_chosen, logps_rejected = (policy_sums / divisor).chunk(2)
        ratios = (policy_sums - reference_sums) / divisor
        rewards_chosen, rewards_rejected = (dpo.beta * ratios).chunk(2)
        ratios_chosen, ratios_rejected = ratios.chunk(2)
        summed = (policy, reference) if dpo.needs_reference else (policy,)
        differences = ratios_chosen - ratios_rejected
        bounds = rounding_bounds(summed, mask, dpo.reduction)
        margins_per_token, kl = None, None
        if dpo.needs_reference:
            margins_per_token, kl = _margin_per_token_and_kl(policy, reference, mask)
    if dpo.ld_alpha is not None:
        token_weights = length_weights(mask, dpo.ld_alpha)
        policy_sums = sequence_logps(policy * token_weights, mask, "sum")
        reference_sums = sequence_logps(reference * token_weights, mask, "sum")
    policy_chosen, policy_rejected = (policy_sums / divisor).chunk(2)
    reference_chosen, reference_rejected = (reference_sums / divisor).chunk(2)
    # An f-divergence is a function of whole sequences' likelihood ratio, so it comes before the
    # division by the length.
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
        losses = losses * pair_weights(policy, to_float64_device(log_sum_sq_probs), mask)
    return PairScores(
        losses=losses,
        rewards_chosen=rewards_chosen,
        rewards_rejected=rewards_rejected,
        accuracies=preferences(differences, bounds),
        ties=is_tied(differences, bounds).double(),
        logps_chosen=logps_chosen,
        logps_rejected=logps_rejected,
        margins_per_token=margins_per_token,
        kl=kl,
    )


def drop_undefined_accuracy(means: dict[str, float]) -> None:
    """Remove the accuracy from means over pairs that are all ties.

    A policy that equals its reference has no accuracy: it has not been decided for any pair. Shown
    as a number, it would make any later accuracy look like progress.
    """
    if means.get("rewards/ties") == 1.0:
        del means["rewards/accuracies"]


def pair_losses(pairs: Pairs, dpo: Dpo) -> Tensor:
    """Return the weighted sum of the profile's losses, (P,)."""
    terms = [weight * FORMULAS[name](pairs, dpo) for name, weight in dpo.losses.items()]
    return torch.stack(terms).sum(dim=0)


def loss_at_start(dpo: Dpo) -> float | None:
    """Return the loss at equal policy and reference: ln 2 for DPO.

    None if that value depends on the policy's own log-probs.
    """
    if not dpo.has_known_start:
        return None
    zero = torch.zeros(1, dtype=torch.float64)
    return pair_losses(Pairs(*[zero] * 8), dpo).item()


def length_weights(mask: Tensor, alpha: float) -> Tensor:
    """Return the token weights of LD-DPO (Liu et al. 2024, arXiv:2409.06411).

    The tokens of the longer response that lie beyond the length of the shorter one have the weight
    `alpha`, all others 1.

    Args:
        mask: (2P, T) bool, the response mask.
        alpha: 1 is plain DPO, 0 cuts both responses to the same length.

    Returns:
        (2P, T) float64.
    """
    shorter = mask.sum(dim=-1).view(2, -1).amin(dim=0).repeat(2)
    is_beyond = mask.cumsum(dim=-1) > shorter.unsqueeze(-1)
    return torch.ones_like(mask, dtype=torch.float64).masked_fill(is_beyond, alpha)


@torch.no_grad()
def pair_weights(policy: Tensor, log_sum_sq_probs: Tensor, mask: Tensor) -> Tensor:
    """Return the pair weights of WPO (Zhou et al. 2024, arXiv:2406.11827, eq. 2).

    Pairs that the policy itself is likely to generate have larger weights. The weight is the
    product over both responses of exp(mean over tokens of [log p(token) - log sum_v p(v)^2]), the
    paper's sampled alignment: the log-prob of each token, relative to that of a token sampled from
    the policy. No gradient flows through a weight.

    Args:
        policy: (2P, T), log-probs of tokens in nats.
        log_sum_sq_probs: (2P, T), see `dpo_cli.objective.logps.log_sum_sq_probs`.
        mask: (2P, T) bool, the response mask.

    Returns:
        (P,) float64.
    """
    aligned = sequence_logps(policy - log_sum_sq_probs, mask, "mean")
    return aligned.view(2, -1).sum(dim=0).exp()


def _margin_per_token_and_kl(
    policy: Tensor, reference: Tensor, mask: Tensor
) -> tuple[Tensor, Tensor]:
    log_ratios = (policy - reference).double()
    chosen_ratio, rejected_ratio = sequence_logps(log_ratios, mask, "mean").chunk(2)
    chosen_kl, rejected_kl = sequence_logps(log_ratios.square() / 2, mask, "mean").chunk(2)
    return chosen_ratio - rejected_ratio, (chosen_kl + rejected_kl) / 2


def zero_loss(token_logps: Tensor, mask: Tensor, aux_loss: Tensor | None) -> Tensor:
    """Return a loss of 0 whose gradient is a zero for each weight.

    Ranks that share a model make the same number of forwards and backwards, also without a pair.
    The losses of a pair times 0 would not do: some divide by the spread of a batch, and NaN times 0
    is NaN.

    Args:
        token_logps: (S, T), of any pairs.
        mask: (S, T) bool, the response mask.
        aux_loss: scalar; None without experts.
    """
    total = torch.where(mask, token_logps, 0.0).sum()
    return 0.0 * (total if aux_loss is None else total + aux_loss)
