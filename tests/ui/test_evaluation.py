"""Tests of the output of `dpo eval`, from made-up metrics."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from dpo_cli.inference.evaluate import Comparison, EvaluatedModel, Evaluation
from dpo_cli.intervals import wilson_interval
from dpo_cli.paired import ModelScores, compare
from dpo_cli.profile.load import profile_from_values
from dpo_cli.run.eval_config import EvalConfig
from dpo_cli.run.events import ACCURACY
from dpo_cli.ui.terminal.evaluation import EvaluationView, as_json, notes
from tests.support.snapshots import assert_snapshot

PROFILE = {"model.tokenizer": Path("/t"), "data.data_path": Path("/test.jsonl")}
BY_ITSELF = ("pairs", "logps/accuracies", "token_logps/chosen", "entropy")


def figures(accuracy: float, pairs: int, **others: float) -> dict[str, float]:
    """Return the metrics of a group of pairs."""
    means = {
        "loss": 0.65,
        "rewards/accuracies": accuracy,
        "rewards/margins": 0.1,
        "margin_per_token": 0.02,
        "kl": 0.001,
        "logps/accuracies": 0.5,
        "ref_logps/accuracies": 0.5,
        "token_logps/chosen": -2.5,
        "entropy": 2.0,
        **others,
    }
    for name in [name for name in means if name.endswith("accuracies")]:
        means[f"{name}/low"], means[f"{name}/high"] = wilson_interval(means[name], pairs)
    return {"pairs": float(pairs), **means}


def evaluation(
    *models: Mapping[str, Mapping[str, float]],
    is_own: bool = True,
    reference: str | None = "full_sft_512.pth",
    trained_on: Sequence[str] = (),
) -> Evaluation:
    titles = ("dense-20260101-120000-ab12", "full_sft_512.pth", "merged.pth")
    return Evaluation(
        eval_config=EvalConfig(
            profile=profile_from_values(PROFILE, ["dpo.beta=5.0"]),
            owner=None,
            is_own=is_own,
            reference=None,
            has_reference=reference is not None,
            runs_root=Path("runs"),
        ),
        models=[
            EvaluatedModel(title, 120 if not index else None, groups)
            for index, (title, groups) in enumerate(zip(titles, models, strict=False))
        ],
        reference=reference,
        device="cpu",
        dtype="float32",
        vocab_size=6400,
        skipped_rows=0 if is_own else 3,
        trained_on=trained_on,
    )


def shown(result: Evaluation, width: int) -> str:
    console = Console(width=width, highlight=False, file=io.StringIO())
    with console.capture() as captured:
        console.print(EvaluationView(result))
    return captured.get()


GROUPS = {
    "all": figures(0.75, 400),
    "language/Chinese": figures(0.7, 200),
    "length/like length": figures(0.6, 30),
    "length/rejected longer": figures(0.4, 5),
}
EQUAL = {
    name: value
    for name, value in figures(
        0.0, 400, kl=0.0, margin_per_token=0.0, **{"rewards/margins": 0.0, "rewards/ties": 1.0}
    ).items()
    if not name.startswith("rewards/accuracies")
}


@pytest.mark.parametrize("width", [80, 120])
def test_one_model_by_groups(width: int) -> None:
    assert_snapshot(f"evaluation-{width}", shown(evaluation(GROUPS), width))


def test_models_side_by_side() -> None:
    others = {"all": EQUAL}, {"all": figures(0.72, 400)}
    assert_snapshot("evaluation-merged", shown(evaluation(GROUPS, *others), 120))


def test_a_model_without_a_reference() -> None:
    own = {name: value for name, value in GROUPS["all"].items() if name.startswith(BY_ITSELF)}
    alone = evaluation({"all": own}, reference=None, is_own=False)
    text = shown(alone, 120)
    assert "400 pairs of /test.jsonl, 3 skipped rows" in text
    assert "against no reference; reduction mean, max_seq_len 1024" in text
    assert "chat template of /t, empty think blocks kept in 20 % of the pairs" in text
    of_a_folder = replace(alone, eval_config=replace(alone.eval_config, default_kind="huggingface"))
    assert "of the pairs; defaults for a Hugging Face model" in shown(of_a_folder, 200)
    assert "accuracy (95 %)" not in text
    assert notes(alone) == ["ranking accuracy 0.50 over 400 pairs: not distinguishable from chance"]


def test_significance_of_the_accuracy() -> None:
    def last_note(accuracy: float, pairs: int, **others: float) -> str:
        return notes(evaluation({"all": figures(accuracy, pairs, **others)}))[-1]

    assert last_note(0.75, 400) == ("accuracy 0.75 over 400 pairs: significantly above 0.5 (95 %)")
    assert last_note(0.25, 400).endswith("significantly below 0.5 (95 %)")
    assert last_note(0.6, 40) == (
        "accuracy 0.60 over 40 pairs: may be chance; about 97 pairs would show 0.60 to differ from"
        " 0.5"
    )
    assert last_note(0.6, 97).startswith("accuracy 0.60 over 97 pairs: significantly above")
    assert last_note(0.6, 96).startswith("accuracy 0.60 over 96 pairs: may be chance")
    assert last_note(0.504, 1000) == (
        "accuracy 0.50 over 1,000 pairs: not distinguishable from chance"
    )
    assert last_note(0.5, 40).endswith("not distinguishable from chance")
    [equal] = notes(evaluation({"all": EQUAL}))
    assert equal == "identical to the reference: nothing was learned"


def test_notes_on_a_wrong_tokenizer_and_on_training_pairs() -> None:
    lines = notes(
        evaluation(
            {"all": figures(0.75, 400, **{"token_logps/chosen": -9.0})},
            is_own=False,
            trained_on=["dense-1"],
        )
    )
    assert lines[0] == "dense-1 was trained on pairs of this file and may have seen these"
    assert lines[1].startswith("chosen answers have a lower log-prob than random guessing")
    assert "-8.76 nats per token" in lines[1]


def test_models_that_few_pairs_cannot_distinguish() -> None:
    models = {"all": figures(0.6, 40)}, {"all": EQUAL}, {"all": figures(0.7, 40)}
    with_a = compare(scores(0.7, 40), scores(0.6, 40), [ACCURACY])
    with_b = compare(scores(0.7, 40), ModelScores({}, range(40)), [ACCURACY])
    compared = replace(
        evaluation(*models), comparisons=[Comparison(2, 0, with_a), Comparison(2, 1, with_b)]
    )
    assert notes(compared)[-2:] == [
        "C vs. A, pair by pair: accuracy: 4 pairs to 0, p = 0.12, about 17 more pairs would settle"
        " it at 95 %",
        "C vs. B, pair by pair: no metric in common",
    ]
    assert as_json(compared)["comparisons"][0]["result"]["accuracies"][ACCURACY]["ahead"] == 4


def scores(accuracy: float, pairs: int) -> ModelScores:
    right = round(accuracy * pairs)
    return ModelScores({ACCURACY: [float(pair < right) for pair in range(pairs)]}, range(pairs))


def test_truncated_pairs_and_known_prompts_are_notes() -> None:
    leaky = dataclasses.replace(evaluation(GROUPS), truncated=52, known_prompts=40)
    leak, cut, *_ = notes(leaky)
    assert leak.startswith("40 of 400 (10 %) pairs have a prompt that the run also trained on")
    assert cut.startswith("52 of 400 (13 %) pairs are truncated at data.max_seq_len = ")
    told = as_json(leaky)
    assert (told["truncated"], told["known_prompts"]) == (52, 40)
    tolerated = dataclasses.replace(evaluation(GROUPS), known_prompts=20)
    assert notes(tolerated) == notes(evaluation(GROUPS))
