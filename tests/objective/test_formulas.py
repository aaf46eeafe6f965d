"""Tests of each loss against golden/trl, computed by TRL, or against the formula of its paper."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from dpo_cli.objective.formulas import FORMULAS, Pairs, divergence_scores, sigmoid
from dpo_cli.objective.losses import pair_losses, score_pairs
from dpo_cli.profile.losses import LOSSES, LossName
from dpo_cli.profile.objective import Dpo

BOUND = 1e-6
"""Bound for losses, recorded in float64, and for gradients, recorded in float32."""
STEEP_BOUND = 3e-6
"""Bound for gradients with a slope above 1 per nat (`sppo_hard`, the forward KL divergence): the
spacing of TRL's float32 sums is 2e-6 at -30 nats."""

NOT_IN_TRL_DPO = {"dpop", "simpo", "orpo"}
DIVERGENCES = ("forward_kl", "js_divergence", "alpha_divergence")


def dpo_of(row: dict[str, Any]) -> Dpo:
    """Return the [dpo] table with the settings of a row of the golden file."""
    names = row["loss_type"] if isinstance(row["loss_type"], list) else [row["loss_type"]]
    return Dpo(
        loss=row["loss_type"],
        loss_weights=row["loss_weights"] and list(map(float, row["loss_weights"])),
        beta=row["beta"],
        reduction="mean" if any(LOSSES[name].mean for name in names) else "sum",
        label_smoothing=row["label_smoothing"] or None,
        f_divergence_type=row["f_divergence_type"],
        f_alpha_divergence_coef=row["f_alpha_divergence_coef"],
        ld_alpha=row["ld_alpha"],
        use_weighting=row["use_weighting"],
        discopop_tau=row["discopop_tau"],
    )


def test_losses_and_gradients_are_golden(golden: Path) -> None:
    rows = json.loads((golden / "trl/trl_losses.json").read_text())["rows"]
    tensors = load_file(golden / "trl/trl_losses.safetensors")
    compared: set[str] = set()
    for row in rows:
        batch, dpo = row["batch"], dpo_of(row)
        policy = tensors[f"{batch}.policy_tok"].clone().requires_grad_()
        mask = tensors[f"{batch}.completion_mask"][:, 1:].bool()
        scores = score_pairs(
            policy,
            tensors[f"{batch}.ref_tok"],
            mask,
            dpo,
            tensors[f"{batch}.log_sum_sq_probs_tok"] if dpo.use_weighting else None,
        )
        loss = scores.losses.mean()
        loss.backward()  # type: ignore[no-untyped-call]
        # TRL computes the alpha divergence in float32 only.
        exact = row["loss_f64"] if row["loss_f64"] is not None else row["loss_f32"]
        assert loss.item() == pytest.approx(exact, abs=BOUND), row
        if row["loss_f64"] is not None and len(dpo.losses) == 1:
            assert scores.losses.tolist() == pytest.approx(row["per_example_f64"], abs=BOUND), row
        gradient = tensors[f"{row['key']}.grad_policy_tok"]
        is_steep = dpo.loss == "sppo_hard" or dpo.f_divergence_type == "forward_kl"
        bound = STEEP_BOUND if is_steep else BOUND
        assert policy.grad is not None
        assert (policy.grad - gradient).abs().max() < bound * max(1, gradient.abs().max()), row
        if metrics := row.get("metrics"):
            for name, value in scores.metric_sums().items():
                if name in metrics:
                    assert value.item() / len(mask) * 2 == pytest.approx(metrics[name], rel=1e-5)
        compared |= dpo.losses.keys()
    assert compared == LOSSES.keys() - NOT_IN_TRL_DPO
    assert len(rows) == 180


def test_every_loss_is_listed_once_and_cites_its_paper() -> None:
    assert get_args(LossName) == tuple(LOSSES) == tuple(FORMULAS)
    for formula in FORMULAS.values():
        assert "arXiv:" in (formula.__doc__ or "") or "as above" in (formula.__doc__ or "")


def some_pairs(count: int = 6, scale: float = 2.0, seed: int = 1) -> dict[str, Tensor]:
    """Return random log-probs around -3, as fields of `Pairs`."""
    generator = torch.Generator().manual_seed(seed)
    logps = -3 + scale * torch.rand(4, count, generator=generator, dtype=torch.float64)
    names = ("policy_chosen", "policy_rejected", "reference_chosen", "reference_rejected")
    return dict(zip(names, logps, strict=True))


def pairs_of(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    dpo: Dpo,
) -> Pairs:
    """Build `Pairs` as `score_pairs` does for responses of one token."""
    return Pairs(
        policy_chosen,
        policy_rejected,
        reference_chosen,
        reference_rejected,
        divergence_scores(policy_chosen - reference_chosen, dpo),
        divergence_scores(policy_rejected - reference_rejected, dpo),
        policy_chosen,
        torch.ones_like(policy_chosen),
    )


def every_setting() -> list[Dpo]:
    """Return each loss with each of its settings."""
    settings = []
    for name, needs in LOSSES.items():
        settings.append(Dpo(loss=name, beta=0.7))
        if needs.smoothing:
            settings.append(Dpo(loss=name, beta=0.7, label_smoothing=0.2))
        if needs.divergence and needs.reference:
            settings += [Dpo(loss=name, beta=0.7, f_divergence_type=d) for d in DIVERGENCES]
    return settings


def setting_id(dpo: Dpo) -> str:
    changed = dpo.model_dump(exclude_defaults=True, exclude={"beta"})
    return "-".join(map(str, changed.values())) or "sigmoid"


@pytest.mark.parametrize("dpo", every_setting(), ids=setting_id)
def test_gradients_match_finite_differences(dpo: Dpo) -> None:
    fields = some_pairs()

    def losses(policy_chosen: Tensor, policy_rejected: Tensor) -> Tensor:
        others = fields["reference_chosen"], fields["reference_rejected"]
        return pair_losses(pairs_of(policy_chosen, policy_rejected, *others, dpo), dpo)

    policy = [fields["policy_chosen"].requires_grad_(), fields["policy_rejected"].requires_grad_()]
    assert torch.autograd.gradcheck(losses, policy)


@pytest.mark.parametrize("dpo", every_setting(), ids=setting_id)
def test_extreme_log_probs_stay_finite(dpo: Dpo) -> None:
    """Responses of thousands of tokens, all certain or almost impossible."""
    policy = -1e5 * torch.tensor([[1.0, 0, 1, 0], [0, 1, 1, 0]], dtype=torch.float64)
    policy.requires_grad_()
    nothing = torch.zeros(4, dtype=torch.float64)
    losses = pair_losses(pairs_of(policy[0], policy[1], nothing, nothing, dpo), dpo)
    losses.sum().backward()  # type: ignore[no-untyped-call]
    assert losses.isfinite().all()
    assert policy.grad is not None
    assert policy.grad.float().isfinite().all()


# --- losses that the golden file does not contain ------------------------------------------------


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x))


def compare_with(formula: Callable[[float, float, float, float], float], dpo: Dpo) -> None:
    """Compare with a formula of a pair's four log-probs in plain Python."""
    fields = some_pairs()
    ours = pair_losses(pairs_of(**fields, dpo=dpo), dpo).tolist()
    rows = zip(*(field.tolist() for field in fields.values()), strict=True)
    assert ours == pytest.approx([formula(*row) for row in rows], rel=1e-12)


def test_dpo_positive() -> None:
    def formula(pc: float, pr: float, rc: float, rr: float) -> float:
        return -log_sigmoid(0.3 * (pc - rc - (pr - rr) - 5 * max(0.0, rc - pc)))

    compare_with(formula, Dpo(loss="dpop", beta=0.3, dpop_lambda=5.0))
    falling = some_pairs()["policy_chosen"] < some_pairs()["reference_chosen"]
    assert falling.any()
    assert not falling.all()


def test_simpo() -> None:
    compare_with(
        lambda pc, pr, rc, rr: -log_sigmoid(2 * pc - 2 * pr - 1.4),
        Dpo(loss="simpo", beta=2.0, simpo_gamma=1.4),
    )


def test_orpo() -> None:
    def odds(logp: float) -> float:
        return math.exp(logp) / (1 - math.exp(logp))

    compare_with(
        lambda pc, pr, rc, rr: -pc - 0.2 * log_sigmoid(math.log(odds(pc) / odds(pr))),
        Dpo(loss="orpo", beta=0.2),
    )


def test_conservative_dpo() -> None:
    def formula(pc: float, pr: float, rc: float, rr: float) -> float:
        u = 0.4 * (pc - pr - (rc - rr))
        return -0.9 * log_sigmoid(u) - 0.1 * log_sigmoid(-u)

    compare_with(formula, Dpo(beta=0.4, label_smoothing=0.1))


def test_derivative_of_dpo_matches_the_paper() -> None:
    dpo, fields = Dpo(beta=0.7), some_pairs(16, scale=40)
    fields["policy_chosen"].requires_grad_()
    pairs = pairs_of(**fields, dpo=dpo)
    sigmoid(pairs, dpo).sum().backward()  # type: ignore[no-untyped-call]
    expected = -0.7 * torch.sigmoid(-0.7 * pairs.score_margins.detach())
    assert fields["policy_chosen"].grad is not None
    assert torch.allclose(fields["policy_chosen"].grad, expected, rtol=1e-12, atol=0)


def test_robust_dpo_is_unbiased_under_flipped_labels() -> None:
    """Expected loss over flips with the assumed probability equals the loss of the true labels."""
    noise, fields = 0.2, some_pairs()
    flipped = {
        name: fields[name.replace(side, other)]
        for name in fields
        for side, other in (("chosen", "rejected"), ("rejected", "chosen"))
        if name.endswith(side)
    }
    dpo = Dpo(loss="robust", beta=0.7, label_smoothing=noise)
    kept, turned = (pair_losses(pairs_of(**each, dpo=dpo), dpo) for each in (fields, flipped))
    true = pair_losses(pairs_of(**fields, dpo=dpo), Dpo(beta=0.7))
    assert torch.allclose((1 - noise) * kept + noise * turned, true, rtol=1e-12)


@pytest.mark.parametrize("name", [name for name in LOSSES if LOSSES[name].whole_batch])
def test_whole_batch_losses_are_not_means_over_pairs(name: LossName) -> None:
    """Their micro-batches must not be regrouped, while those of other losses may."""
    dpo, fields = Dpo(loss=name), some_pairs()
    fields["tokens"] = torch.arange(1.0, 7.0, dtype=torch.float64)

    def loss(which: slice) -> Tensor:
        *four, tokens = (field[which] for field in fields.values())
        pairs = pairs_of(*four, dpo=dpo)
        return pair_losses(Pairs(*list(vars(pairs).values())[:-1], tokens), dpo).mean()

    assert abs((loss(slice(3)) + loss(slice(3, 6))) / 2 - loss(slice(6))) > 1e-4


@pytest.mark.parametrize("name", [name for name in LOSSES if not LOSSES[name].whole_batch])
def test_all_other_losses_are_means_over_pairs(name: LossName) -> None:
    dpo, fields = Dpo(loss=name), some_pairs()
    whole = pair_losses(pairs_of(**fields, dpo=dpo), dpo)
    each = ({key: field[n : n + 1] for key, field in fields.items()} for n in range(6))
    alone = [pair_losses(pairs_of(**pair, dpo=dpo), dpo) for pair in each]
    assert torch.allclose(whole, torch.cat(alone), rtol=1e-12)


@pytest.mark.parametrize("name", [name for name in LOSSES if not LOSSES[name].reference])
def test_losses_without_a_reference_do_not_depend_on_it(name: LossName) -> None:
    dpo, fields = Dpo(loss=name), some_pairs()
    others = fields | {key: torch.zeros(6) for key in fields if key.startswith("reference")}
    ours, expected = (pair_losses(pairs_of(**each, dpo=dpo), dpo) for each in (fields, others))
    assert torch.equal(ours, expected)


class TestDivergences:
    ratios = torch.linspace(-4, 4, 9, dtype=torch.float64)

    @pytest.mark.parametrize("divergence", DIVERGENCES)
    def test_near_equality_every_divergence_is_the_log_ratio(self, divergence: Any) -> None:
        """f''(1) is 1, or 1/2 for Jensen-Shannon, so equal policies get the same gradient."""
        slope = 0.5 if divergence == "js_divergence" else 1.0
        small = torch.tensor([-1e-6, 0.0, 1e-6], dtype=torch.float64)
        scores = divergence_scores(small, Dpo(f_divergence_type=divergence))
        assert scores.tolist() == pytest.approx((slope * small).tolist(), abs=1e-11)

    def test_alpha_divergence_is_forward_kl_at_0_and_reverse_kl_at_1(self) -> None:
        def alpha(coefficient: float) -> Tensor:
            dpo = Dpo(f_divergence_type="alpha_divergence", f_alpha_divergence_coef=coefficient)
            return divergence_scores(self.ratios, dpo)

        forward = divergence_scores(self.ratios, Dpo(f_divergence_type="forward_kl"))
        assert torch.allclose(alpha(0.0), forward, rtol=1e-12)
        assert torch.allclose(forward, 1 - (-self.ratios).exp(), rtol=1e-9)
        assert torch.equal(alpha(1.0), self.ratios)
        assert torch.allclose(alpha(1 - 1e-5), self.ratios, rtol=1e-4)
