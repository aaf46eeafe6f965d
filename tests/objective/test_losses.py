"""Losses and gradients against golden/dpo_loss, which the reference scripts computed."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dpo_cli.objective.logps import gather_logps, sequence_logps
from dpo_cli.objective.losses import dpo_losses, score_pairs

REDUCTIONS = {"seed": "mean", "head": "sum"}
BOUND = 1e-6


@pytest.mark.parametrize("generation", REDUCTIONS)
def test_losses_and_gradients_are_the_golden_ones(golden: Path, generation: str) -> None:
    cases = json.loads((golden / f"dpo_loss/{generation}.json").read_text())["cases"]
    tensors = load_file(golden / f"dpo_loss/{generation}.safetensors")
    compared = 0
    for case in cases:
        name = case["name"] if "name" in case else case["case"]
        mask = tensors[f"{name}.mask"].bool()
        policy = tensors[f"{name}.policy"].clone().requires_grad_()
        scores = score_pairs(
            policy,
            tensors[f"{name}.ref"],
            mask,
            beta=case["beta"],
            reduction=REDUCTIONS[generation],  # type: ignore[arg-type]
        )
        loss = scores.losses.mean()
        loss.backward()  # type: ignore[no-untyped-call]
        assert policy.grad is not None
        if case["loss_f32"] == "nan":
            # Generation 2 divides by zero response tokens; such rows never get here (they are set
            # aside), and the formula stays finite all the same.
            assert not mask.any(dim=1).all()
            assert math.isfinite(loss.item())
            continue
        assert loss.item() == pytest.approx(case["loss_f64"], abs=BOUND)
        assert (policy.grad - tensors[f"{name}.grad_policy"]).abs().max() < BOUND
        compared += 1
    assert compared >= 5


def test_gathered_logps_are_the_golden_ones(golden: Path) -> None:
    tensors = load_file(golden / "dpo_loss/seed.safetensors")
    gather = {key.removeprefix("gather."): t for key, t in tensors.items() if "gather." in key}
    logits, labels = gather.pop("logits"), gather.pop("labels")
    (expected,) = gather.values()
    assert (gather_logps(logits, labels.long()) - expected).abs().max() < BOUND


def test_half_precision_logits_are_widened_first() -> None:
    logits = torch.randn(5, 6400, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(5)
    half = gather_logps(logits.bfloat16(), labels)
    assert half.dtype == torch.float32
    assert torch.equal(half, gather_logps(logits.bfloat16().float(), labels))


def test_the_loss_begins_at_ln_2_with_a_slope_of_half_beta() -> None:
    chosen = torch.tensor([-5.0, -7.0], dtype=torch.float64, requires_grad=True)
    rejected = torch.tensor([-6.0, -2.0], dtype=torch.float64, requires_grad=True)
    losses = dpo_losses(chosen, rejected, chosen.detach(), rejected.detach(), beta=0.3)
    assert losses.tolist() == pytest.approx([math.log(2)] * 2)
    losses.sum().backward()  # type: ignore[no-untyped-call]
    assert chosen.grad is not None
    assert rejected.grad is not None
    assert chosen.grad.tolist() == pytest.approx([-0.15, -0.15])
    assert rejected.grad.tolist() == pytest.approx([0.15, 0.15])


def test_the_derivative_is_the_one_of_the_paper() -> None:
    generator = torch.Generator().manual_seed(1)
    policy_chosen, policy_rejected, reference_chosen, reference_rejected = (
        torch.randn(16, generator=generator, dtype=torch.float64) * 20 for _ in range(4)
    )
    policy_chosen.requires_grad_()
    beta = 0.7
    dpo_losses(
        policy_chosen, policy_rejected, reference_chosen, reference_rejected, beta
    ).sum().backward()  # type: ignore[no-untyped-call]
    margins = (policy_chosen - policy_rejected) - (reference_chosen - reference_rejected)
    expected = -beta * torch.sigmoid(-beta * margins.detach())
    assert policy_chosen.grad is not None
    assert torch.allclose(policy_chosen.grad, expected, rtol=1e-12, atol=0)


def test_a_hopeless_pair_keeps_a_finite_loss_and_its_full_slope() -> None:
    chosen = torch.tensor([-1e5], dtype=torch.float64, requires_grad=True)
    zero = torch.zeros(1, dtype=torch.float64)
    losses = dpo_losses(chosen, zero, zero, zero, beta=1.0)
    losses.sum().backward()  # type: ignore[no-untyped-call]
    assert losses.item() == pytest.approx(1e5)
    assert chosen.grad is not None
    assert chosen.grad.item() == pytest.approx(-1.0)


class TestScores:
    policy = torch.tensor(
        [[-1.0, -2.0, 9.0], [-1.0, -1.0, -1.0], [-2.0, -2.0, 9.0], [-4.0, 9.0, 9.0]]
    )
    reference = torch.tensor(
        [[-2.0, -2.0, 5.0], [-1.0, -1.0, -1.0], [-1.0, -2.0, 5.0], [-4.0, 5.0, 5.0]]
    )
    mask = torch.tensor([[1, 1, 0], [1, 1, 1], [1, 1, 0], [1, 0, 0]]).bool()

    def test_rewards_margins_and_accuracies(self) -> None:
        scores = score_pairs(self.policy, self.reference, self.mask, beta=0.5, reduction="sum")
        assert scores.rewards_chosen.tolist() == [0.5, 0.0]
        assert scores.rewards_rejected.tolist() == [-0.5, 0.0]
        assert scores.margins.tolist() == [1.0, 0.0]
        assert scores.accuracies.tolist() == [1.0, 0.0]  # an equal pair is not accurate
        assert scores.logps_chosen.tolist() == [-3.0, -3.0]
        assert scores.sums()["rewards/margins"].item() == 1.0

    def test_gap_and_drift_are_per_token_whatever_the_reduction(self) -> None:
        by_sum, by_mean = (
            score_pairs(self.policy, self.reference, self.mask, beta=beta, reduction=reduction)
            for beta, reduction in ((0.5, "sum"), (7.0, "mean"))
        )
        assert by_sum.gaps.tolist() == by_mean.gaps.tolist() == [1.0, 0.0]
        assert by_sum.kls.tolist() == [0.25, 0.0]  # one token in two has moved by a nat

    def test_what_is_masked_has_no_say(self) -> None:
        spoilt = torch.where(self.mask, self.policy, torch.full_like(self.policy, float("inf")))
        clean, other = (
            score_pairs(policy, self.reference, self.mask, beta=0.5, reduction="mean").sums()
            for policy in (self.policy, spoilt)
        )
        assert {k: v.item() for k, v in clean.items()} == {k: v.item() for k, v in other.items()}


def test_sums_are_accurate_where_float32_is_not() -> None:
    generator = torch.Generator().manual_seed(2)
    token_logps = -5 - torch.rand(1, 2000, generator=generator)
    mask = torch.ones_like(token_logps).bool()
    exact = math.fsum(token_logps[0].tolist())
    assert sequence_logps(token_logps, mask, "sum").item() == pytest.approx(exact, abs=1e-9)
    assert sequence_logps(token_logps, mask, "mean").item() == pytest.approx(exact / 2000)
