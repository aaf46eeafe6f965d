"""The losses of preference pairs, a formula each: log-probs of responses in, (P,) losses out.

In the formulas c and r are the scores of the chosen and the rejected response (the log-ratio of
policy and reference, unless another f-divergence is asked for), u = beta * (c - r), s is the
sigmoid. Names, signs and constants are TRL's (release 1.16) where it has the loss.
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
"""What the EXO paper recommends; 0 has no logarithm."""

_LARGEST_EXPONENT = 80.0
"""exp of it, times any sensible beta, is a float32, as gradients of token log-probs are."""
_CERTAIN = -1e-6
"""Log-prob from which on a response has the odds of this one: those of 0 are infinite."""


@dataclass(frozen=True)
class Pairs:
    """P pairs as a loss sees them; every field is (P,) float64, the policy's with gradients.

    policy_*, reference_*: the log-prob of each response, summed or averaged over its tokens as
        `dpo.reduction` says; without a reference the latter are 0.
    scores_*: what `divergence_scores` makes of their difference, likewise summed or averaged.
    chosen_sums, chosen_tokens: the policy's plain sum over the chosen response, and its length.
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
        """c - r."""
        return self.scores_chosen - self.scores_rejected


def sigmoid(pairs: Pairs, dpo: Dpo) -> Tensor:
    """DPO, Rafailov et al. 2023, arXiv:2305.18290, eq. 7: -log s(u).

    Its derivative by c is -beta * s(-u), and by r the opposite; at the start the policy is the
    reference, u = 0, and the loss is ln 2 = 0.693 with a slope of beta / 2.

    With label smoothing e it is cDPO (Mitchell 2023, "A note on DPO with noisy preferences"), where
    a share e of the labels is taken to be wrong: -(1 - e) log s(u) - e log s(-u).
    """
    return _smoothed(dpo.beta * pairs.score_margins, dpo.label_smoothing)


def hinge(pairs: Pairs, dpo: Dpo) -> Tensor:
    """The hinge of SLiC-HF, Zhao et al. 2023, arXiv:2305.10425, sec. 2, on DPO's margin (RSO, Liu
    et al. 2023, arXiv:2309.06657): max(0, 1 - u).
    """
    return torch.relu(1 - dpo.beta * pairs.score_margins)


def ipo(pairs: Pairs, dpo: Dpo) -> Tensor:
    """IPO, Azar et al. 2023, arXiv:2310.12036, eq. 17, with tau = beta: (c - r - 1 / (2 beta))^2.

    c and r are means over tokens: the paper does not say so, but its authors told TRL that its
    results were computed that way.
    """
    return (pairs.score_margins - 1 / (2 * dpo.beta)).square()


def robust(pairs: Pairs, dpo: Dpo) -> Tensor:
    """rDPO, Chowdhury et al. 2024, arXiv:2403.00409, sec. 3.1, for a share e of flipped labels:
    (-(1 - e) log s(u) + e log s(-u)) / (1 - 2 e).

    Unbiased: over flips with probability e its mean is the loss of the true labels. It may be
    negative.
    """
    flipped = dpo.label_smoothing or 0.0
    logits = dpo.beta * pairs.score_margins
    clean = -(1 - flipped) * F.logsigmoid(logits)
    return (clean + flipped * F.logsigmoid(-logits)) / (1 - 2 * flipped)


def exo_pair(pairs: Pairs, dpo: Dpo) -> Tensor:
    """EXO, Ji et al. 2024, arXiv:2402.00856, eq. 16, for two responses: KL(q || p) of
    q = (s(u), s(-u)) and p = (1 - e, e).
    """
    smoothing = EXO_SMOOTHING if dpo.label_smoothing is None else dpo.label_smoothing
    logits = dpo.beta * pairs.score_margins
    chosen = torch.sigmoid(logits) * (F.logsigmoid(logits) - math.log1p(-smoothing))
    rejected = torch.sigmoid(-logits) * (F.logsigmoid(-logits) - math.log(smoothing))
    return chosen + rejected


def nca_pair(pairs: Pairs, dpo: Dpo) -> Tensor:
    """NCA, Chen et al. 2024, arXiv:2402.05369, sec. 4.1, for two responses:
    -log s(beta c) - (log s(-beta c) + log s(-beta r)) / 2.
    """
    chosen, rejected = dpo.beta * pairs.scores_chosen, dpo.beta * pairs.scores_rejected
    return -F.logsigmoid(chosen) - 0.5 * (F.logsigmoid(-chosen) + F.logsigmoid(-rejected))


def bco_pair(pairs: Pairs, dpo: Dpo) -> Tensor:
    """BCO, Jung et al. 2024, arXiv:2404.04656, sec. 4, on pairs: -log s(beta c) - log s(-beta r).

    Without the paper's reward shift, a running mean of the rewards that is taken off both: TRL
    dropped it, too. It would be one more state for a resume to bring back.
    """
    chosen, rejected = dpo.beta * pairs.scores_chosen, dpo.beta * pairs.scores_rejected
    return -F.logsigmoid(chosen) - F.logsigmoid(-rejected)


def sppo_hard(pairs: Pairs, dpo: Dpo) -> Tensor:
    """SPPO, Wu et al. 2024, arXiv:2405.00675, eq. 4.7, with eta = 1 / beta and win probabilities 1
    and 0: (c - 1 / (2 beta))^2 + (r + 1 / (2 beta))^2.
    """
    target = 0.5 / dpo.beta
    return (pairs.scores_chosen - target).square() + (pairs.scores_rejected + target).square()


def aot(pairs: Pairs, dpo: Dpo) -> Tensor:
    """AOT, Melnyk et al. 2024, arXiv:2406.05882, sec. 3, paired: the policy's margins between
    chosen and rejected, sorted over the batch, against the reference's, sorted for themselves, by
    the smoothed logistic loss of `sigmoid`.

    What comes out is in that order, so that none belongs to a pair; their mean is the loss.
    """
    policy = torch.sort(pairs.policy_chosen - pairs.policy_rejected).values
    reference = torch.sort(pairs.reference_chosen - pairs.reference_rejected).values
    return _smoothed(dpo.beta * (policy - reference), dpo.label_smoothing)


def aot_unpaired(pairs: Pairs, dpo: Dpo) -> Tensor:
    """AOT, as above, unpaired: the scores c, sorted over the batch, against the r, sorted for
    themselves.
    """
    chosen = torch.sort(pairs.scores_chosen).values
    rejected = torch.sort(pairs.scores_rejected).values
    return _smoothed(dpo.beta * (chosen - rejected), dpo.label_smoothing)


def apo_zero(pairs: Pairs, dpo: Dpo) -> Tensor:
    """APO-zero, D'Oosterlinck et al. 2024, arXiv:2408.06266, eq. 7: s(-beta c) + s(beta r).

    For chosen responses better than the model's own: they become likelier, rejected ones less so.
    """
    return torch.sigmoid(-dpo.beta * pairs.scores_chosen) + torch.sigmoid(
        dpo.beta * pairs.scores_rejected
    )


def apo_down(pairs: Pairs, dpo: Dpo) -> Tensor:
    """APO-down, as above, eq. 8: s(beta c) + s(-u).

    For a model better than both responses: both become less likely, rejected ones more so.
    """
    return torch.sigmoid(dpo.beta * pairs.scores_chosen) + torch.sigmoid(
        -dpo.beta * pairs.score_margins
    )


def discopop(pairs: Pairs, dpo: Dpo) -> Tensor:
    """DiscoPOP, Lu et al. 2024, arXiv:2406.08414, eq. 5: -(1 - m) log s(u) + m exp(-u), with
    m = s(u / tau).
    """
    logits = dpo.beta * pairs.score_margins
    logistic = -torch.sigmoid(-logits / dpo.discopop_tau) * F.logsigmoid(logits)
    # In one exponent: of a hopeless pair m is 0 and exp(-u) infinite.
    return logistic + torch.exp(F.logsigmoid(logits / dpo.discopop_tau) - logits)


def sigmoid_norm(pairs: Pairs, dpo: Dpo) -> Tensor:
    """Length-normalized DPO, Lambert et al. 2024 (Tulu 3), arXiv:2411.15124: -log s(u), where c and
    r are means over tokens.
    """
    return -F.logsigmoid(dpo.beta * pairs.score_margins)


def dpop(pairs: Pairs, dpo: Dpo) -> Tensor:
    """DPO-Positive, Pal et al. 2024 (Smaug), arXiv:2402.13228:
    -log s(beta (c - r - lambda max(0, -c))).

    The last term holds the chosen response at least as likely as under the reference.
    """
    fallen = torch.relu(-pairs.scores_chosen)
    return -F.logsigmoid(dpo.beta * (pairs.score_margins - dpo.dpop_lambda * fallen))


def sft(pairs: Pairs, dpo: Dpo) -> Tensor:
    """The negative log-likelihood of the chosen responses, a mean over all their tokens in the
    batch, the same for each pair: the term that RPO (Pang et al. 2024, arXiv:2404.19733) and MPO
    (Wang et al. 2024, arXiv:2411.10442) add to a preference loss.
    """
    mean = -pairs.chosen_sums.sum() / pairs.chosen_tokens.sum().clamp(min=1)
    return mean.expand_as(pairs.chosen_sums)


def simpo(pairs: Pairs, dpo: Dpo) -> Tensor:
    """SimPO, Meng et al. 2024, arXiv:2405.14734, eq. 6: -log s(beta (p_c - p_r) - gamma), with the
    policy's mean log-probs p and no reference.
    """
    margins = dpo.beta * (pairs.policy_chosen - pairs.policy_rejected)
    return -F.logsigmoid(margins - dpo.simpo_gamma)


def orpo(pairs: Pairs, dpo: Dpo) -> Tensor:
    """ORPO, Hong et al. 2024, arXiv:2403.07691, eq. 6 and 7, with lambda = beta:
    -p_c - beta log s(log odds_c - log odds_r), odds = exp(p) / (1 - exp(p)), with the policy's mean
    log-probs p and no reference.

    The likelihood is that of the response, averaged pair by pair; TRL's counts the prompt too.
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
"""What each needs is in `dpo_cli.profile.losses.LOSSES`."""


def divergence_scores(log_ratios: Tensor, dpo: Dpo) -> Tensor:
    """f'(t) of the likelihood ratio t of policy and reference: the score of a response where the
    policy is held to the reference by the f-divergence `dpo.f_divergence_type` (f-DPO, Wang et al.
    2023, arXiv:2309.16240, table 1; constants left out where two scores are subtracted).

    Reverse KL: log t. Forward KL: 1 - 1/t. Jensen-Shannon: log(2t / (1 + t)). Alpha:
    (t^(a-1) - 1) / (a - 1), which is log t at a = 1 and the forward KL divergence at a = 0. What
    is raised to a power is capped: beyond, a response has no gradient.

    Args:
        log_ratios: log t, of whole responses.
        dpo: names the divergence.
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
    return torch.expm1((power * log_ratios).clamp(max=_LARGEST_EXPONENT)) / power


def _smoothed(logits: Tensor, smoothing: float | None) -> Tensor:
    """The logistic loss where a share of the labels is wrong."""
    if not smoothing:
        return -F.logsigmoid(logits)
    return -(1 - smoothing) * F.logsigmoid(logits) - smoothing * F.logsigmoid(-logits)


def _log_odds(logps: Tensor) -> Tensor:
    logps = logps.clamp(max=_CERTAIN)
    return logps - torch.log(-torch.expm1(logps))
