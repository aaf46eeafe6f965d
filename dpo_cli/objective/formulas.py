"""Losses of preference pairs, one function per formula: `Pairs` in, losses of shape (P,) out.

Notation of the docstrings:

- c, r: scores of the chosen and the rejected response, the log-ratios of policy and reference
  unless another f-divergence is set
- u = beta * (c - r), the reward margin of DPO
- s(x): the sigmoid
- e: `label_smoothing`, the assumed share of wrong labels
- p_c, p_r: the policy's log-probs, without a reference

Names, signs and constants are those of TRL 1.16 for every loss that TRL has. All log-probs are
float64, so no formula loses the small differences between large sums.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from dpo_cli.profile.losses import LossName
from dpo_cli.profile.objective import Dpo

EXO_SMOOTHING = 1e-3
"""Label smoothing that the EXO paper recommends; not 0, because the loss contains its logarithm."""

_MAX_EXPONENT = 80.0
"""Cap of an exponent: gradients of token log-probs are float32, whose largest number is e^88.7.

The remaining 8 nats are room for beta and other factors.
"""
_MAX_LOGP = -1e-6
"""Cap of a log-prob before its odds are computed: a log-prob of 0 has infinite odds."""


@dataclass(frozen=True)
class Pairs:
    """Inputs of a loss for P pairs; every field is (P,) float64, the policy's with gradients.

    Attributes:
        policy_chosen, policy_rejected, reference_chosen, reference_rejected: log-prob of each
            response in nats, summed or averaged over its tokens by `dpo.reduction`; 0 for the
            reference if the loss uses none.
        scores_chosen, scores_rejected: c and r, `divergence_scores` of the log-ratios, summed or
            averaged likewise.
        chosen_sums: the policy's plain sum over the tokens of the chosen response.
        chosen_tokens: number of these tokens.
    """

    policy_chosen: Tensor
    policy_rejected: Tensor
    reference_chosen: Tensor
    reference_rejected: Tensor
    scores_chosen: Tensor
    scores_rejected: Tensor
    chosen_sums: Tensor
    chosen_tokens: Tensor

    @property
    def score_margins(self) -> Tensor:
        """Difference c - r, (P,)."""
        return self.scores_chosen - self.scores_rejected


def sigmoid(pairs: Pairs, dpo: Dpo) -> Tensor:
    """Compute DPO: -log s(u) (Rafailov et al. 2023, arXiv:2305.18290, eq. 7).

    The derivative with respect to c is -beta * s(-u), and with respect to r the opposite. At the
    start the policy equals the reference, so u = 0, the loss is ln 2 = 0.693, and the slope is
    beta / 2.

    With label smoothing this is cDPO (Mitchell 2023, "A note on DPO with noisy preferences"):
    -(1 - e) log s(u) - e log s(-u).
    """
    return _smoothed(dpo.beta * pairs.score_margins, dpo.label_smoothing)


def hinge(pairs: Pairs, dpo: Dpo) -> Tensor:
    """Compute the hinge loss max(0, 1 - u).

    The hinge of SLiC-HF (Zhao et al. 2023, arXiv:2305.10425, sec. 2) on the margin of DPO, as in
    RSO (Liu et al. 2023, arXiv:2309.06657).
    """
    return torch.relu(1 - dpo.beta * pairs.score_margins)


def ipo(pairs: Pairs, dpo: Dpo) -> Tensor:
    """Compute IPO: (c - r - 1 / (2 beta))^2.

    Azar et al. 2023, arXiv:2310.12036, eq. 17, with tau = beta. c and r are means over tokens; the
    paper does not say so, but its authors confirmed to TRL that they computed their results this
    way.
    """
    return (pairs.score_margins - 1 / (2 * dpo.beta)).square()


def robust(pairs: Pairs, dpo: Dpo) -> Tensor:
    """Compute robust DPO: (-(1 - e) log s(u) + e log s(-u)) / (1 - 2 e).

    Chowdhury et al. 2024, arXiv:2403.00409, sec. 3.1. Unbiased: if each label is flipped with
    probability e, the expected loss is that of the true labels. It may be negative.
    """
    flip_rate = dpo.label_smoothing or 0.0
    logits = dpo.beta * pairs.score_margins
    clean = -(1 - flip_rate) * F.logsigmoid(logits)
    return (clean + flip_rate * F.logsigmoid(-logits)) / (1 - 2 * flip_rate)


def exo_pair(pairs: Pairs, dpo: Dpo) -> Tensor:
    """Compute EXO for two responses: KL(q || p) with q = (s(u), s(-u)) and p = (1 - e, e).

    Ji et al. 2024, arXiv:2402.00856, eq. 16.
    """
    smoothing = EXO_SMOOTHING if dpo.label_smoothing is None else dpo.label_smoothing
    logits = dpo.beta * pairs.score_margins
    chosen = torch.sigmoid(logits) * (F.logsigmoid(logits) - math.log1p(-smoothing))
    rejected = torch.sigmoid(-logits) * (F.logsigmoid(-logits) - math.log(smoothing))
    return chosen + rejected


def nca_pair(pairs: Pairs, dpo: Dpo) -> Tensor:
    """Compute NCA for two responses: -log s(beta c) - (log s(-beta c) + log s(-beta r)) / 2.

    Chen et al. 2024, arXiv:2402.05369, sec. 4.1.
    """
    chosen, rejected = dpo.beta * pairs.scores_chosen, dpo.beta * pairs.scores_rejected
    return -F.logsigmoid(chosen) - 0.5 * (F.logsigmoid(-chosen) + F.logsigmoid(-rejected))


def bco_pair(pairs: Pairs, dpo: Dpo) -> Tensor:
    """Compute BCO on pairs: -log s(beta c) - log s(-beta r).

    Jung et al. 2024, arXiv:2404.04656, sec. 4. Without the paper's reward shift, a running mean of
    the rewards that is subtracted from both: TRL omits it as well, and a resumed run would have to
    restore it.
    """
    chosen, rejected = dpo.beta * pairs.scores_chosen, dpo.beta * pairs.scores_rejected
    return -F.logsigmoid(chosen) - F.logsigmoid(-rejected)


def sppo_hard(pairs: Pairs, dpo: Dpo) -> Tensor:
    """Compute SPPO: (c - 1 / (2 beta))^2 + (r + 1 / (2 beta))^2.

    Wu et al. 2024, arXiv:2405.00675, eq. 4.7, with eta = 1 / beta and win probabilities 1 and 0.
    """
    target = 0.5 / dpo.beta
    return (pairs.scores_chosen - target).square() + (pairs.scores_rejected + target).square()


def aot(pairs: Pairs, dpo: Dpo) -> Tensor:
    """Compute paired AOT (Melnyk et al. 2024, arXiv:2406.05882, sec. 3).

    The margins p_c - p_r of the policy and those of the reference are each sorted over the batch,
    and the sorted values are compared by the smoothed logistic loss of `sigmoid`. So the losses
    returned are in sorted order and none belongs to a pair; only their mean is meaningful.
    """
    policy = torch.sort(pairs.policy_chosen - pairs.policy_rejected).values
    reference = torch.sort(pairs.reference_chosen - pairs.reference_rejected).values
    return _smoothed(dpo.beta * (policy - reference), dpo.label_smoothing)


def aot_unpaired(pairs: Pairs, dpo: Dpo) -> Tensor:
    """Compute unpaired AOT: the scores c and the scores r, each sorted over the batch.

    Paper as above.
    """
    chosen = torch.sort(pairs.scores_chosen).values
    rejected = torch.sort(pairs.scores_rejected).values
    return _smoothed(dpo.beta * (chosen - rejected), dpo.label_smoothing)


def apo_zero(pairs: Pairs, dpo: Dpo) -> Tensor:
    """Compute APO-zero: s(-beta c) + s(beta r).

    D'Oosterlinck et al. 2024, arXiv:2408.06266, eq. 7. For chosen responses better than the
    model's own: makes chosen responses more likely and rejected ones less likely.
    """
    return torch.sigmoid(-dpo.beta * pairs.scores_chosen) + torch.sigmoid(
        dpo.beta * pairs.scores_rejected
    )


def apo_down(pairs: Pairs, dpo: Dpo) -> Tensor:
    """Compute APO-down: s(beta c) + s(-u); paper as above, eq. 8.

    For a model that is better than both responses: makes both less likely, rejected ones more so.
    """
    return torch.sigmoid(dpo.beta * pairs.scores_chosen) + torch.sigmoid(
        -dpo.beta * pairs.score_margins
    )


def discopop(pairs: Pairs, dpo: Dpo) -> Tensor:
    """Compute DiscoPOP: -(1 - m) log s(u) + m exp(-u), with m = s(u / tau).

    Lu et al. 2024, arXiv:2406.08414, eq. 5.
    """
    logits = dpo.beta * pairs.score_margins
    logistic = -torch.sigmoid(-logits / dpo.discopop_tau) * F.logsigmoid(logits)
    # m * exp(-u) as one exponential: for very negative u the factors are 0 and infinity.
    return logistic + torch.exp(F.logsigmoid(logits / dpo.discopop_tau) - logits)


def sigmoid_norm(pairs: Pairs, dpo: Dpo) -> Tensor:
    """Compute length-normalized DPO: -log s(u), where c and r are means over tokens.

    Lambert et al. 2024 (Tulu 3), arXiv:2411.15124.
    """
    return -F.logsigmoid(dpo.beta * pairs.score_margins)


def dpop(pairs: Pairs, dpo: Dpo) -> Tensor:
    """Compute DPO-Positive: -log s(beta (c - r - lambda max(0, -c))).

    Pal et al. 2024 (Smaug), arXiv:2402.13228. The last term penalizes a chosen response that is
    less likely than under the reference.
    """
    penalty = torch.relu(-pairs.scores_chosen)
    return -F.logsigmoid(dpo.beta * (pairs.score_margins - dpo.dpop_lambda * penalty))


def sft(pairs: Pairs, dpo: Dpo) -> Tensor:
    """Compute the mean negative log-likelihood per token of all chosen responses of the batch.

    Equal for every pair. RPO (Pang et al. 2024, arXiv:2404.19733) and MPO (Wang et al. 2024,
    arXiv:2411.10442) add this term to a preference loss.
    """
    mean = -pairs.chosen_sums.sum() / pairs.chosen_tokens.sum().clamp(min=1)
    return mean.expand_as(pairs.chosen_sums)


def simpo(pairs: Pairs, dpo: Dpo) -> Tensor:
    """Compute SimPO: -log s(beta (p_c - p_r) - gamma), where p_c and p_r are means over tokens.

    Meng et al. 2024, arXiv:2405.14734, eq. 6. Uses no reference.
    """
    margins = dpo.beta * (pairs.policy_chosen - pairs.policy_rejected)
    return -F.logsigmoid(margins - dpo.simpo_gamma)


def orpo(pairs: Pairs, dpo: Dpo) -> Tensor:
    """Compute ORPO: -p_c - beta log s(log odds_c - log odds_r), odds = exp(p) / (1 - exp(p)).

    Hong et al. 2024, arXiv:2403.07691, eq. 6 and 7, with lambda = beta. p_c and p_r are means over
    tokens; uses no reference. The likelihood term covers the response only and is averaged over
    pairs; TRL's includes the prompt.
    """
    log_odds = _log_odds(pairs.policy_chosen) - _log_odds(pairs.policy_rejected)
    return -pairs.policy_chosen - dpo.beta * F.logsigmoid(log_odds)


Formula = Callable[[Pairs, Dpo], Tensor]

FORMULAS: Mapping[LossName, Formula] = {
    "sigmoid": sigmoid,
    "hinge": hinge,
    "ipo": ipo,
    "robust": robust,
    "exo_pair": exo_pair,
    "nca_pair": nca_pair,
    "bco_pair": bco_pair,
    "sppo_hard": sppo_hard,
    "aot": aot,
    "aot_unpaired": aot_unpaired,
    "apo_zero": apo_zero,
    "apo_down": apo_down,
    "discopop": discopop,
    "sigmoid_norm": sigmoid_norm,
    "dpop": dpop,
    "sft": sft,
    "simpo": simpo,
    "orpo": orpo,
}
"""Functions by name in `dpo.loss`; `dpo_cli.profile.losses.LOSSES` lists their requirements."""


def divergence_scores(log_ratios: Tensor, dpo: Dpo) -> Tensor:
    """Return the score f'(t) of each response, where t is the likelihood ratio policy / reference.

    f-DPO (Wang et al. 2023, arXiv:2309.16240, table 1) regularizes the policy by the f-divergence
    `dpo.f_divergence_type`. Constants are omitted, because they cancel between two scores:

    - reverse KL: log t
    - forward KL: 1 - 1/t
    - Jensen-Shannon: log(2t / (1 + t))
    - alpha: (t^(a-1) - 1) / (a - 1), which is log t at a = 1 and the forward KL at a = 0

    Powers of t are capped at e^80; a response beyond the cap gets no gradient.

    Args:
        log_ratios: log t, summed over whole responses, in nats.
        dpo: the profile's [dpo] table.

    Returns:
        Scores of the same shape and dtype.
    """
    match dpo.f_divergence_type:
        case "forward_kl":
            power = -1.0
        case "js_divergence":
            return math.log(2) + F.logsigmoid(log_ratios)
        case "alpha_divergence" if abs(dpo.f_alpha_divergence_coef - 1) >= 1e-6:
            power = dpo.f_alpha_divergence_coef - 1
        case _:
            return log_ratios
    # expm1 keeps the digits of a ratio close to 1, where t^power - 1 would cancel.
    return torch.expm1((power * log_ratios).clamp(max=_MAX_EXPONENT)) / power


def _smoothed(logits: Tensor, smoothing: float | None) -> Tensor:
    """Compute the logistic loss, with label smoothing if set."""
    if not smoothing:
        return -F.logsigmoid(logits)
    return -(1 - smoothing) * F.logsigmoid(logits) - smoothing * F.logsigmoid(-logits)


def _log_odds(logps: Tensor) -> Tensor:
    logps = logps.clamp(max=_MAX_LOGP)
    # log p - log(1 - p); expm1 keeps the digits of 1 - p for p close to 1.
    return logps - torch.log(-torch.expm1(logps))
