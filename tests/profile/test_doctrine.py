"""Tests of the recipe rules: measured limits, remedies, and agreement of all proposals."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from dpo_cli.intervals import wilson_interval
from dpo_cli.profile import doctrine
from dpo_cli.profile.doctrine import RunRecipe
from dpo_cli.profile.load import load_profile
from dpo_cli.profile.text import show_value
from dpo_cli.run import verdict
from tests.support.cli import REPOSITORY

SMALL, LARGE = 26_000_000, 300_000_000
MEASURED = json.loads((REPOSITORY / "benchmarks/recipes_small.json").read_text())["points"]
NUMBER = r"\d+(?:\.\d+)?(?:e-?\d+)?"


def current(rate: float, steps: int = 100, **changes: Any) -> RunRecipe:
    """Return a run of the proposed loss, with `changes`."""
    values = {
        "reduction": doctrine.REDUCTION,
        "beta": doctrine.BETA,
        "learning_rate": rate,
        "lr_sum": 0.6 * steps * rate,
        "parameters": SMALL,
    }
    return RunRecipe(**{**values, **changes})


def remedies() -> Iterator[tuple[RunRecipe, str]]:
    """Return the remedies of many runs."""
    for rate in (1e-8, 1e-6, 5e-6, 3e-5, 1e-3):
        for steps in (1, 15, 400, 10_000):
            for parameters in (1_000, SMALL, LARGE):
                for loss in ({}, {"reduction": "mean", "beta": 0.1}):
                    run = current(rate, steps, parameters=parameters, **loss)
                    yield run, doctrine.learn_more(run)
                    yield run, doctrine.learn_less(run)
                    for safe in (1e-9, 1e-3):
                        yield run, doctrine.smaller_rate(run, safe)


# --- measurements ------------------------------------------------------------------------------


def is_intact(point: dict[str, Any]) -> bool:
    """Return True if neither the held-out loss nor the answers got worse, by `run/verdict.py`."""
    repeats = fmean(point["repetition"]) - fmean(point["repetition_before"])
    rise = point["loss_change"]
    return rise <= verdict.RISE_SHARE * math.log(2) and repeats < verdict.COLLAPSE


def is_proposed_loss(point: dict[str, Any]) -> bool:
    return (point["reduction"], point["beta"]) == (doctrine.REDUCTION, doctrine.BETA)


def test_every_measured_point_up_to_the_cap_left_the_model_intact() -> None:
    below = [p for p in MEASURED if is_proposed_loss(p) and p["rate"] <= doctrine.MAX_LEARNING_RATE]
    assert below
    assert all(map(is_intact, below))
    assert all(p["first_batch_after_first_step"] > doctrine.LOW_LOSS for p in below)
    # So did twice the cap, but one step at this rate moves its own pairs about to the limit.
    above = [p for p in MEASURED if is_proposed_loss(p) and p["rate"] == 1e-5]
    assert above
    assert all(map(is_intact, above))
    assert {p["rate"] for p in above} == {2 * doctrine.MAX_LEARNING_RATE}
    ends = [p["first_batch_after_first_step"] for p in above]
    assert min(ends) < doctrine.LOW_LOSS < max(ends)


def test_the_check_of_one_step_warns_of_every_measured_rate_far_above_the_cap() -> None:
    above = [p for p in MEASURED if is_proposed_loss(p) and p["rate"] >= 3e-5]
    assert above
    assert all(p["first_batch_after_first_step"] < doctrine.LOW_LOSS for p in above)


# --- remedies ----------------------------------------------------------------------------------


def test_remedies_name_only_proposed_values() -> None:
    for run, remedy in remedies():
        for rate in re.findall(rf"learning_rate = ({NUMBER})", remedy):
            assert float(rate) <= doctrine.max_learning_rate(run.parameters)
            assert float(rate) <= 1.01 * run.proposed_rate
        for reduction in re.findall(r'reduction = "(\w+)"', remedy):
            assert reduction == doctrine.REDUCTION
        for beta in re.findall(rf"beta = ({NUMBER})", remedy):
            assert float(beta) == doctrine.BETA


def test_no_remedy_to_learn_more_names_a_rate_without_a_beta() -> None:
    for run, _ in remedies():
        remedy = doctrine.learn_more(run)
        assert ("learning_rate =" in remedy) == ("beta =" in remedy)


def test_the_proposed_values_get_no_other_ones() -> None:
    for parameters in (SMALL, LARGE):
        for rows in range(2, 3000, 7):
            proposal = doctrine.propose(rows, 4, "minimind2", parameters)
            run = current(proposal.learning_rate, proposal.steps, parameters=parameters)
            assert doctrine.learn_more(run).startswith("These are the values that dpo init")
            more = doctrine.hold_out_more(proposal.held_out, rows)
            assert "eval.fraction" not in more


def test_a_run_that_went_too_far_gets_the_proposal_or_less() -> None:
    assert doctrine.learn_less(current(1.2e-4, 15)) == (
        "Set train.learning_rate = 5e-6, as dpo init proposes."
    )
    assert doctrine.learn_less(current(5e-6)).startswith("Set train.learning_rate = 1.6e-6, or")


@pytest.mark.parametrize(
    ("value", "floor"), [(1e-5, 1e-5), (1.999e-5, 1.9e-5), (9.99e-6, 9.9e-6), (1 / 3, 0.33)]
)
def test_rates_are_rounded_down(value: float, floor: float) -> None:
    assert doctrine.floor_digits(value) == floor


def test_the_gradient_halves_at_the_saturation_margin() -> None:
    """The gradient is proportional to sigmoid(-u), 1/2 at the start."""
    gap = doctrine.saturation_margin(5.0, "mean", 100.0)
    assert 1 / (1 + math.exp(5.0 * gap)) == pytest.approx(1 / 4)
    assert doctrine.saturation_margin(0.05, "sum", 100.0) == pytest.approx(gap)


# --- held-out pairs ----------------------------------------------------------------------------


def test_held_out_pairs_are_enough_from_ninety_rows_on() -> None:
    for rows in range(2, 4000):
        held_out = doctrine.propose_held_out(rows)
        assert 1 <= held_out < rows
        assert round(doctrine.held_out_fraction(rows) * rows) == held_out
        assert rows < 90 or held_out >= doctrine.MIN_HELD_OUT


def test_more_rows_never_hold_out_fewer() -> None:
    held_out = [doctrine.propose_held_out(rows) for rows in range(2, 4_000)]
    assert held_out == sorted(held_out)
    assert held_out[-1] == 200


@pytest.mark.parametrize("count", [1, 3, 4, 6, 20, 29])
def test_what_held_out_pairs_show_agrees_with_their_interval(count: int) -> None:
    text = doctrine.what_held_out_shows(count)
    shown = [hits for hits in range(count + 1) if wilson_interval(hits / count, count)[0] > 0.5]
    if not shown:
        assert "cannot show anything" in text
        return
    assert f"an accuracy of {shown[0] / count:.2f} or more" in text


# --- agreement ---------------------------------------------------------------------------------


def test_the_shipped_profile_for_other_models_has_the_proposed_loss_and_rate() -> None:
    profile = load_profile(Path("hf")).profile
    assert profile.dpo.reduction == doctrine.REDUCTION
    assert profile.dpo.beta == doctrine.BETA
    assert profile.train.learning_rate == doctrine.max_learning_rate(None)


def test_the_documentation_has_the_same_limits() -> None:
    text = (REPOSITORY / "docs/recipes.md").read_text(encoding="utf-8")
    for name, value in (
        ("`dpo.reduction`", f'"{doctrine.REDUCTION}"'),
        ("`dpo.beta`", f"{doctrine.BETA:g}"),
        ("largest learning rate up to 30 M weights", show_value(doctrine.MAX_LEARNING_RATE)),
        ("largest learning rate above", show_value(doctrine.USUAL_LEARNING_RATE)),
        ("largest `lr_sum`", show_value(doctrine.MAX_LR_SUM)),
        ("held-out pairs", f"{doctrine.MIN_HELD_OUT}"),
        ("loss after one step", f"{doctrine.LOW_LOSS:g}"),
    ):
        [row] = [line for line in text.splitlines() if line.startswith(f"| {name} |")]
        assert row.split("|")[2].strip() == value
    assert doctrine.MEASURED_PARAMETERS == 30_000_000


def test_no_other_module_states_a_value() -> None:
    """Remedies with a learning rate, a reduction or a beta are written in the doctrine only."""
    stated = re.compile(r"(learning_rate|dpo\.beta|dpo\.reduction|eval\.fraction) = [\"\d]")
    for path in (REPOSITORY / "dpo_cli").rglob("*.py"):
        if path.parent.name in {"checks", "alerts", "run", "terminal", "html"}:
            assert not stated.search(path.read_text(encoding="utf-8")), path
