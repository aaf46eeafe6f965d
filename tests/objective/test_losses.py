"""Tests of losses and gradients against golden/dpo_loss, computed by MiniMind's script."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Literal

import pytest
import torch
from safetensors.torch import load_file

from dpo_cli.objective.logps import gather_logps, sequence_logps
from dpo_cli.objective.losses import length_weights, loss_at_start, pair_weights, score_pairs
from dpo_cli.profile.losses import LOSSES, LossName
from dpo_cli.profile.objective import Dpo

REDUCTIONS: dict[str, Literal["mean", "sum"]] = {"seed": "mean", "head": "sum"}
BOUND = 1e-6
SUM = Dpo(beta=0.5, reduction="sum")


@pytest.mark.parametrize("version", REDUCTIONS)
def test_losses_and_gradients_are_golden(golden: Path, version: str) -> None:
    cases = json.loads((golden / f"dpo_loss/{version}.json").read_text())["cases"]
    tensors = load_file(golden / f"dpo_loss/{version}.safetensors")
    compared = 0
    for case in cases:
        name = case["name"] if "name" in case else case["case"]
        mask = tensors[f"{name}.mask"].bool()
        policy = tensors[f"{name}.policy"].clone().requires_grad_()
        dpo = Dpo(beta=case["beta"], reduction=REDUCTIONS[version])
        scores = score_pairs(policy, tensors[f"{name}.ref"], mask, dpo)
        loss = scores.losses.mean()
        loss.backward()  # type: ignore[no-untyped-call]
        assert policy.grad is not None
        if case["loss_f32"] == "nan":
            # MiniMind version 2 divides by zero response tokens; such rows never get here (they are
            # skipped), and the formula stays finite all the same.
            assert not mask.any(dim=1).all()
            assert math.isfinite(loss.item())
            continue
        assert loss.item() == pytest.approx(case["loss_f64"], abs=BOUND)
        assert (policy.grad - tensors[f"{name}.grad_policy"]).abs().max() < BOUND
        compared += 1
    assert compared >= 5


def test_gathered_logps_are_golden(golden: Path) -> None:
    tensors = load_file(golden / "dpo_loss/seed.safetensors")
    gather = {key.removeprefix("gather."): t for key, t in tensors.items() if "gather." in key}
    logits, labels = gather.pop("logits"), gather.pop("labels")
    (expected,) = gather.values()
    assert (gather_logps(logits, labels.long()) - expected).abs().max() < BOUND


def test_half_precision_logits_are_widened_before_the_softmax() -> None:
    logits = torch.randn(5, 6400, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(5)
    half = gather_logps(logits.bfloat16(), labels)
    assert half.dtype == torch.float32
    assert torch.equal(half, gather_logps(logits.bfloat16().float(), labels))


class TestScores:
    policy = torch.tensor(
        [[-1.0, -2.0, 9.0], [-1.0, -1.0, -1.0], [-2.0, -2.0, 9.0], [-4.0, 9.0, 9.0]]
    )
    reference = torch.tensor(
        [[-2.0, -2.0, 5.0], [-1.0, -1.0, -1.0], [-1.0, -2.0, 5.0], [-4.0, 5.0, 5.0]]
    )
    mask = torch.tensor([[1, 1, 0], [1, 1, 1], [1, 1, 0], [1, 0, 0]]).bool()

    def test_rewards_margins_and_accuracies(self) -> None:
        scores = score_pairs(self.policy, self.reference, self.mask, SUM)
        assert scores.rewards_chosen.tolist() == [0.5, 0.0]
        assert scores.rewards_rejected.tolist() == [-0.5, 0.0]
        assert scores.margins.tolist() == [1.0, 0.0]
        assert scores.accuracies.tolist() == [1.0, 0.5]  # a tie counts half
        assert scores.ties.tolist() == [0.0, 1.0]
        assert scores.logps_chosen.tolist() == [-3.0, -3.0]
        assert scores.metric_sums()["rewards/margins"].item() == 1.0

    def test_margin_per_token_and_kl_do_not_depend_on_beta_or_reduction(self) -> None:
        by_sum, by_mean = (
            score_pairs(self.policy, self.reference, self.mask, dpo)
            for dpo in (SUM, Dpo(beta=7.0, reduction="mean"))
        )
        assert by_sum.margins_per_token.tolist() == by_mean.margins_per_token.tolist() == [1.0, 0.0]
        assert by_sum.kl.tolist() == [0.25, 0.0]  # one token of two moved by 1 nat

    def test_masked_tokens_do_not_count(self) -> None:
        with_inf = torch.where(self.mask, self.policy, torch.full_like(self.policy, float("inf")))
        clean, other = (
            score_pairs(policy, self.reference, self.mask, Dpo(beta=0.5)).metric_sums()
            for policy in (self.policy, with_inf)
        )
        assert {k: v.item() for k, v in clean.items()} == {k: v.item() for k, v in other.items()}

    @pytest.mark.parametrize("loss", ["hinge", "ipo", "aot", "bco_pair", "sft", "dpop"])
    def test_metrics_do_not_depend_on_the_loss(self, loss: LossName) -> None:
        plain = score_pairs(self.policy, self.reference, self.mask, Dpo(beta=0.5)).metric_sums()
        other = [Dpo(beta=0.5, loss=["sigmoid", loss])]
        if loss in ("hinge", "ipo"):
            other.append(Dpo(beta=0.5, loss=loss, f_divergence_type="js_divergence", ld_alpha=0.1))
        for dpo in other:
            sums = score_pairs(self.policy, self.reference, self.mask, dpo).metric_sums()
            assert sums.pop("loss") != plain["loss"]
            assert all(plain[name] == value for name, value in sums.items())
            assert len(sums) == len(plain) - 1

    def test_rewards_without_a_reference(self) -> None:
        """SimPO, eq. 4; metrics that need a reference are None."""
        nothing = torch.zeros_like(self.reference)
        scores = score_pairs(self.policy, nothing, self.mask, Dpo(loss="simpo", beta=2.0))
        assert scores.rewards_chosen.tolist() == [-3.0, -2.0]
        assert scores.accuracies.tolist() == [1.0, 1.0]
        assert scores.margins_per_token is None
        assert scores.kl is None
        assert not {"margin_per_token", "kl"} & scores.metric_sums().keys()


class TestLengthWeights:
    mask = torch.tensor([[1, 1, 1, 0], [0, 1, 0, 1], [0, 1, 0, 0], [1, 1, 0, 1]]).bool()

    def test_tokens_beyond_the_shorter_length_have_weight_alpha(self) -> None:
        weights = length_weights(self.mask, 0.25)
        assert weights[self.mask].tolist() == [1, 0.25, 0.25, 1, 1, 1, 1, 1, 0.25]

    def test_mean_divides_by_all_tokens(self) -> None:
        policy = -torch.arange(16.0).view(4, 4)
        losses = {}
        for reduction in REDUCTIONS.values():
            dpo = Dpo(loss="sppo_hard", beta=0.5, reduction=reduction, ld_alpha=0.0)
            losses[reduction] = score_pairs(policy, torch.zeros(4, 4), self.mask, dpo).losses
        # chosen: the first of three tokens, -0; both of two, -5 and -7; rejected: -9; -12 and -13
        assert losses["sum"].tolist() == [1 + 64, 13**2 + 24**2]
        assert losses["mean"].tolist() == pytest.approx([1 + 64, 7**2 + (25 / 3 - 1) ** 2])


def test_pair_as_likely_as_samples_has_weight_one() -> None:
    """Each token has the expected probability of a sampled token, 1/2."""
    half = torch.full((2, 3), 0.5).log()
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]]).bool()
    assert pair_weights(half, half, mask).item() == pytest.approx(1.0)
    less = torch.tensor([[0.25, 0.5, 0.5], [0.25, 9.0, 9.0]]).log()
    assert pair_weights(less, half, mask).item() == pytest.approx(0.5 ** (1 / 3) * 0.5)


@pytest.mark.parametrize(
    ("dpo", "start"),
    [
        (Dpo(), math.log(2)),
        (Dpo(loss="hinge"), 1.0),
        (Dpo(loss="ipo", beta=0.5), 1.0),
        (Dpo(loss=["sigmoid", "apo_zero"], loss_weights=[2.0, 0.5]), 2 * math.log(2) + 0.5),
        (Dpo(f_divergence_type="js_divergence"), math.log(2)),
        (Dpo(loss="aot"), math.log(2)),
        (Dpo(use_weighting=True), None),
        (Dpo(loss=["sigmoid", "sft"]), None),
        (Dpo(loss="simpo"), None),
    ],
)
def test_loss_at_equal_policy_and_reference(dpo: Dpo, start: float | None) -> None:
    assert loss_at_start(dpo) == (start if start is None else pytest.approx(start))
    if start is not None:
        token_logps = -torch.rand(8, 5, generator=torch.Generator().manual_seed(3))
        mask = torch.arange(5) < torch.tensor([5, 3, 1, 2, 4, 4, 2, 5]).unsqueeze(1)
        losses = score_pairs(token_logps, token_logps, mask, dpo).losses
        assert losses.tolist() == pytest.approx([start] * 4)


@pytest.mark.parametrize("name", LOSSES)
def test_known_start_is_one_value_for_every_pair(name: LossName) -> None:
    """This holds for any log-probs of the policy and any lengths of the responses."""
    dpo = Dpo(loss=name)
    token_logps = -torch.rand(8, 5, generator=torch.Generator().manual_seed(4))
    mask = torch.arange(5) < torch.tensor([5, 3, 1, 2, 4, 4, 2, 5]).unsqueeze(1)
    losses = score_pairs(token_logps, token_logps, mask, dpo).losses.tolist()
    others = score_pairs(3 * token_logps, 3 * token_logps, mask, dpo).losses.tolist()
    assert LOSSES[name].known_start == (losses + others == pytest.approx([losses[0]] * 8))


def test_weighting_without_log_sum_sq_probs_is_an_error() -> None:
    zeros = torch.zeros(2, 1)
    with pytest.raises(ValueError, match="log_sum_sq_probs"):
        score_pairs(zeros, zeros, torch.ones(2, 1).bool(), Dpo(use_weighting=True))


def test_sums_are_more_accurate_than_float32() -> None:
    generator = torch.Generator().manual_seed(2)
    token_logps = -5 - torch.rand(1, 2000, generator=generator)
    mask = torch.ones_like(token_logps).bool()
    exact = math.fsum(token_logps[0].tolist())
    assert sequence_logps(token_logps, mask, "sum").item() == pytest.approx(exact, abs=1e-9)
    assert sequence_logps(token_logps, mask, "mean").item() == pytest.approx(exact / 2000)
