"""Tests of evaluation of pairs with several turns against TRL's recorded losses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import dpo_cli as dpo

MEANS = ("sigmoid_norm", "ipo", "simpo")


@pytest.fixture(scope="module")
def recorded() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(__file__).with_name("trl_logps.json").read_text())
    return found


@pytest.mark.parametrize(
    "loss", ["sigmoid", "sigmoid_norm", "ipo", "apo_zero", "bco_pair", "simpo"]
)
def test_losses_and_log_probs_are_those_of_trl(
    shared: Path, recorded: dict[str, Any], loss: str
) -> None:
    cases = shared / "cases"
    settings: dict[str, Any] = {
        "dpo.loss": loss,
        "dpo.beta": 2.5 if loss == "simpo" else 0.1,
        "dpo.simpo_gamma": 1.25,
        "dpo.reduction": "mean" if loss in MEANS else "sum",
        "data.max_seq_len": 256,
        "train.device": "cpu",
    }
    evaluation = dpo.evaluate(
        cases / "models/llama3",
        cases / "33-several-turns/pairs.jsonl",
        reference=None if loss == "simpo" else cases / "models/llama3b",
        settings=settings,
    )
    metrics = evaluation.models[0].groups["all"]
    logps = recorded["logps"]
    for side in ("chosen", "rejected"):
        sums, tokens = logps[side], logps[f"{side}_tokens"]
        if settings["dpo.reduction"] == "mean":
            sums = [total / count for total, count in zip(sums, tokens, strict=True)]
        assert metrics[f"logps/{side}"] == pytest.approx(sum(sums) / len(sums), abs=1e-5)
    # TRL adds float32 log-probs of a hundred nats; the loss of ipo is their square.
    assert metrics["loss"] == pytest.approx(recorded["losses"][loss], rel=1e-6)


def test_a_model_that_does_not_think_ranks_by_log_probs_per_token(shared: Path) -> None:
    """The empty think block of the template stays, and longer answers are not ranked lower."""
    cases = shared / "cases"
    evaluation = dpo.evaluate(cases / "models/qwen3", cases / "34-no-thinking/pairs.jsonl")
    assert evaluation.models[0].groups["all"]["logps/accuracies"] == 0.7


def test_reported_loss_of_several_turns(shared: Path) -> None:
    cases = shared / "cases"
    evaluation = dpo.evaluate(
        cases / "models/llama3b",
        cases / "33-several-turns/pairs.jsonl",
        reference=cases / "models/llama3",
        settings={"dpo.loss": "ipo", "dpo.beta": 0.1, "data.max_seq_len": 256},
    )
    assert evaluation.models[0].groups["all"]["loss"] == pytest.approx(25.189, abs=5e-4)
