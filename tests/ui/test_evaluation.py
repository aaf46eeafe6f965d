"""What is shown of models on pairs, and what is said of the figures: from figures made up."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from rich.console import Console

from dpo_cli.inference.evaluate import EvaluatedModel, Evaluation
from dpo_cli.intervals import wilson_interval
from dpo_cli.profile.load import profile_from_values
from dpo_cli.run.eval_config import EvalConfig
from dpo_cli.ui.terminal.evaluation import EvaluationView, notes
from tests.ui.test_dashboard import assert_snapshot

PROFILE = {"model.tokenizer": Path("/t"), "data.data_path": Path("/test.jsonl")}
BY_ITSELF = ("pairs", "logps/accuracies", "token_logps/chosen", "entropy")


def figures(accuracy: float, pairs: int, **others: float) -> dict[str, float]:
    """Of a group; names may be given as gap or kl."""
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


def evaluation_result(
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


def shown(its: Evaluation, width: int) -> str:
    console = Console(width=width, highlight=False, file=io.StringIO())
    with console.capture() as captured:
        console.print(EvaluationView(its))
    return captured.get()


GROUPS = {
    "all": figures(0.75, 400),
    "language/Chinese": figures(0.7, 200),
    "length/like length": figures(0.6, 30),
    "length/rejected longer": figures(0.4, 5),
}
SAME = figures(0.0, 400, kl=0.0, margin_per_token=0.0, **{"rewards/margins": 0.0})


@pytest.mark.parametrize("width", [80, 120])
def test_one_model_by_groups(width: int) -> None:
    assert_snapshot(f"evaluation-{width}", shown(evaluation_result(GROUPS), width))


def test_models_side_by_side() -> None:
    others = {"all": SAME}, {"all": figures(0.72, 400)}
    assert_snapshot("evaluation-merged", shown(evaluation_result(GROUPS, *others), 120))


def test_a_model_by_itself() -> None:
    own = {name: value for name, value in GROUPS["all"].items() if name.startswith(BY_ITSELF)}
    alone = evaluation_result({"all": own}, reference=None, is_own=False)
    text = shown(alone, 120)
    assert "400 pairs of /test.jsonl, 3 rows set aside" in text
    assert "against no reference; reduction mean, max_seq_len 1024" in text
    assert "accuracy (95 %)" not in text
    assert notes(alone) == [
        "preference accuracy 0.50 over 400 pairs: as good as chance, as far as so many pairs can"
        " tell"
    ]


def test_what_few_pairs_tell() -> None:
    def said(accuracy: float, pairs: int, **others: float) -> str:
        return notes(evaluation_result({"all": figures(accuracy, pairs, **others)}))[-1]

    assert said(0.75, 400) == (
        "accuracy 0.75 over 400 pairs: above 0.5 by more than chance explains (95 %)"
    )
    assert said(0.25, 400).endswith("below 0.5 by more than chance explains (95 %)")
    assert said(0.6, 40) == (
        "accuracy 0.60 over 40 pairs may be chance: to tell 0.60 from 0.5 takes some 97 pairs"
    )
    assert said(0.6, 97).startswith("accuracy 0.60 over 97 pairs: above 0.5")
    assert said(0.6, 96).startswith("accuracy 0.60 over 96 pairs may be chance")
    assert said(0.0, 40, kl=0.0).endswith("to the reference: nothing has moved")


def test_a_wrong_tokenizer_and_pairs_of_the_training() -> None:
    told = notes(
        evaluation_result(
            {"all": figures(0.75, 400, **{"token_logps/chosen": -9.0})},
            is_own=False,
            trained_on=["dense-1"],
        )
    )
    assert told[0] == "dense-1 was trained on pairs of this file: it may know these"
    assert told[1].startswith("guessing would make the chosen answers likelier")
    assert "-8.76 nats a token" in told[1]


def test_who_is_not_told_from_whom() -> None:
    told = notes(
        evaluation_result({"all": figures(0.6, 40)}, {"all": SAME}, {"all": figures(0.7, 40)})
    )
    assert told[-1] == "40 pairs do not tell C from A by their accuracy (95 %: -0.11 to +0.29)"
    told = notes(evaluation_result({"all": figures(0.6, 4000)}, {"all": figures(0.7, 4000)}))
    assert [note.split(" over ")[0] for note in told] == ["A: accuracy 0.60", "B: accuracy 0.70"]
