"""Tests of lr_sum, of the weights that lr_sum can change, and of the saturation of the loss."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dpo_cli.checks.check import run_checks
from dpo_cli.checks.lr_sum import distance_to_change, measure_lr_sum, safe_share
from dpo_cli.findings import Level
from dpo_cli.formatting import format_percent
from dpo_cli.objective.formulas import Pairs
from dpo_cli.objective.losses import pair_losses
from dpo_cli.profile.doctrine import LOW_LOSS
from dpo_cli.profile.load import load_profile
from dpo_cli.profile.recipe import Inputs, learning_recipe
from dpo_cli.profile.template import render
from tests.checks.conftest import SUBJECTS, TOKENIZER, Examine, of, prepared_with, row

DTYPES = (torch.float16, torch.bfloat16, torch.float32)


# --- spacing -----------------------------------------------------------------------------------


def weights() -> Tensor:
    """Return weights of many magnitudes: powers of two, zero, values between those of float16."""
    generator = torch.Generator().manual_seed(3)
    sizes = torch.exp2(torch.randint(-30, 4, (400,), generator=generator).float())
    drawn = torch.randn(400, generator=generator) * sizes
    return torch.cat([drawn, drawn.half().float(), sizes[:50], -sizes[50:99], torch.zeros(1)])


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_weight_changes_beyond_the_distance_only(dtype: torch.dtype) -> None:
    start = weights().double()
    distance = distance_to_change(start.float(), dtype)
    assert (distance >= 0).all()
    before = start.to(dtype)

    def changes(factor: float) -> Tensor:
        move = distance * factor
        return ((start + move).to(dtype) != before) | ((start - move).to(dtype) != before)

    # Torch converts float64 to half precision by way of float32, so tiny distances are blurred.
    is_testable = distance > (1e-5 if dtype != torch.float32 else 1e-12) * start.abs()
    assert is_testable.sum() > 400
    assert not changes(0.99)[is_testable].any()
    assert changes(1.01)[is_testable].all()


def test_the_distance_is_half_the_spacing_or_a_quarter_at_a_power_of_two() -> None:
    start = torch.tensor([1.5, 1.0, -0.75, 0.0])
    spacing = 2.0**-10
    assert distance_to_change(start, torch.float16).tolist() == [
        spacing / 2,
        spacing / 4,
        spacing / 4,
        2.0**-25,
    ]


def test_at_1e_8_no_float32_weight_of_a_quarter_or_more_moves() -> None:
    """1.1e-8, the largest step of MiniMind version 2's recipe, moves only smaller weights."""
    start = torch.tensor([0.2499, 0.2501, 0.9])
    assert (distance_to_change(start, torch.float32) < 1.1e-8).tolist() == [True, False, False]


# --- lr_sum ------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [[], ["train.batch_size=1", "train.accumulation_steps=4"]])
def test_lr_sum_is_the_sum_of_the_rates_that_are_used(bench: Path, settings: list[str]) -> None:
    inputs = prepared_with(bench, *settings)
    global_batches = list(inputs.order.global_batches())
    assert inputs.order.last_steps == [window.last_step for window in global_batches]
    lr_sum = measure_lr_sum(inputs)
    rates = [inputs.learning_rate.at(window.last_step) for window in global_batches]
    assert lr_sum.total == pytest.approx(sum(rates), rel=1e-12)
    assert lr_sum.largest_rate == max(rates)


def test_an_lr_sum_too_small_for_the_file(examined: Examine) -> None:
    diagnosis = examined("train.learning_rate=1e-8", "dpo.beta=0.1")
    short = of(diagnosis, "lr-sum-small")
    assert short.level is Level.WARN
    assert short.message.startswith("lr_sum 2.9e-8 over 4 steps: at most ")
    assert "weights change in a float16 file" in short.message
    facts = diagnosis.facts["lr_sum"]
    assert facts["changed"]["float16"] < 0.1
    assert f"at most {format_percent(facts['changed']['float16'], 0)} of the" in short.message
    assert "together" in short.remedy


def test_weights_that_no_float32_step_can_change(examined: Examine) -> None:
    diagnosis = examined("train.learning_rate=1e-10")
    assert "no single step changes them, even in float32" in of(diagnosis, "lr-sum-small").message
    assert of(diagnosis, "update-lost").level is Level.WARN


# --- saturation --------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [["dpo.beta=5"], ["dpo.beta=0.3", "dpo.reduction=sum"]])
def test_the_gradient_halves_at_the_saturation_margin(bench: Path, settings: list[str]) -> None:
    inputs = prepared_with(bench, *settings)
    dpo, tokens = inputs.profile.dpo, inputs.pairs.response_tokens.double().mean()
    margin = inputs.saturation_margin
    assert margin is not None
    per_answer = margin * (tokens if dpo.reduction == "sum" else 1)
    margins = torch.tensor([0.0, float(per_answer)], requires_grad=True)
    nothing = torch.zeros(2)
    scores = Pairs(
        policy_chosen=margins,
        policy_rejected=nothing,
        reference_chosen=nothing,
        reference_rejected=nothing,
        scores_chosen=margins,
        scores_rejected=nothing,
        chosen_sums=margins,
        chosen_tokens=nothing + 1,
    )
    pair_losses(scores, dpo).sum().backward()
    assert margins.grad is not None
    assert margins.grad[1] / margins.grad[0] == pytest.approx(0.5, rel=1e-5)


@pytest.mark.parametrize("beta", [0.1, 5.0])
def test_saturation_is_independent_of_lr_sum(examined: Examine, beta: float) -> None:
    diagnosis = examined(f"dpo.beta={beta}")
    assert of(diagnosis, "lr-sum").level is Level.OK
    if beta == 5.0:
        assert "differ by 0.22 nats per token" in of(diagnosis, "saturation").message
        return
    missing = of(diagnosis, "no-saturation")
    assert "reads 0.693 even if weights change" in missing.message
    assert 'dpo.reduction = "sum", dpo.beta = 0.1' in missing.remedy
    assert "train.learning_rate = 5e-6 together" in missing.remedy


@pytest.mark.parametrize("settings", [["train.learning_rate=1e-8"], ["dpo.beta=0.1"]])
def test_no_remedy_names_a_learning_rate_without_a_beta(
    examined: Examine, settings: list[str]
) -> None:
    for finding in examined(*settings).findings:
        if "learning_rate =" in finding.remedy:
            assert "dpo.beta =" in finding.remedy


# --- one real step ----------------------------------------------------------------------------


def test_a_real_step_changes_each_weight_by_about_the_learning_rate(examined: Examine) -> None:
    message = of(examined(), "update").message
    assert message.startswith("one real step at 1.1e-4 changed ")
    before, after = map(float, re.findall(r"([\d.]+) (?:before|after)", message))
    assert before == pytest.approx(math.log(2), abs=1e-4)
    assert after < before


def test_after_a_warm_up_it_is_the_full_rate(examined: Examine) -> None:
    assert "at 6.4e-5 changed" in of(examined("train.warmup_iters=3"), "update").message


def test_a_step_that_takes_its_pairs_far_down_names_a_rate_that_does_not(
    examined: Examine,
) -> None:
    keys = ("dpo.beta=60", "dpo.reduction=mean")
    large = of(examined("train.learning_rate=1e-3", *keys), "update-large")
    assert large.level is Level.WARN
    before, after = map(float, re.findall(r"([\d.]+) (?:before|after)", large.message))
    assert (before, after) == (pytest.approx(math.log(2), abs=1e-4), pytest.approx(0, abs=LOW_LOSS))
    [rate] = re.findall(r"train.learning_rate = (\S+) or less", large.remedy)
    again = of(examined(f"train.learning_rate={rate}", *keys), "update")
    assert again.level is Level.OK


def test_the_safe_share_is_measured_not_only_extrapolated() -> None:
    """The answers of this model react most to the first part of a step."""
    measured: list[float] = []

    def loss_at(share: float) -> float:
        measured.append(share)
        return math.log1p(math.exp(-9 * share**0.25))

    share = safe_share(loss_at(1.0), loss_at)
    assert loss_at(share) >= LOW_LOSS
    assert len(measured) > 3
    assert safe_share(0.0, lambda share: 0.6) > 0


def test_other_losses_have_no_bound_for_one_step(examined: Examine) -> None:
    diagnosis = examined("train.learning_rate=1e-3", "dpo.loss=ipo", "dpo.reduction=mean")
    assert of(diagnosis, "update").level is Level.OK


# --- profiles of dpo init ----------------------------------------------------------------------


@pytest.mark.parametrize("rows", [2, 8, 100])
def test_a_profile_of_init_gets_no_remedy_that_contradicts_it(bench: Path, rows: int) -> None:
    subjects = [f"{subject} number {number}" for number in range(13) for subject in SUBJECTS]
    lines = [row(f"Tell me of {each}.", f"I like {each}.", f"No: {each}.") for each in subjects]
    (bench / "pairs.jsonl").write_text("".join(lines[:rows]))
    found = Inputs(bench / "full_sft_32.pth", TOKENIZER, bench / "pairs.jsonl", rows)
    shipped = load_profile(Path("dense"))
    draft = learning_recipe(shipped, found, bench)
    (bench / "proposed.toml").write_text(render(draft, "A title.", shipped.profile))
    settings = ["data.max_seq_len=128", "train.device=cpu"]
    diagnosis = run_checks(bench / "proposed.toml", settings, bench / "runs", None, lambda *_: None)
    keys = ("learning_rate =", "beta =", "reduction =", "eval.fraction =", "eval.keep_best =")
    for finding in diagnosis.findings:
        assert not any(key in finding.remedy for key in keys), finding
    remedies = {finding.code: finding.remedy for finding in diagnosis.findings if finding.remedy}
    assert ("held-out-few" in remedies) == ("lr-sum-small" in remedies) == (rows < 90)
    if rows < 90:
        assert remedies["lr-sum-small"].startswith("These are the values that dpo init proposes")
