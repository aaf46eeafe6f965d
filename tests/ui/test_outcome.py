"""Sentences on whether a run worked."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

from dpo_cli.commands.compared_runs import compared_run
from dpo_cli.paired import ModelScores
from dpo_cli.run.events import Evaluated, Planned, history
from dpo_cli.ui.comparison import ComparedRun
from dpo_cli.ui.outcome import outcome
from tests.support import story


def run_of(root: Path, *events: object) -> ComparedRun:
    run = story.write(root, "plain", *events)  # type: ignore[arg-type]
    return compared_run("A", run, history(run.events_path))


def test_a_run_that_worked(tmp_path: Path) -> None:
    loss, accuracy = outcome(run_of(tmp_path, *story.contender({})))
    assert loss.startswith(
        "The run worked: the loss of 40 held-out pairs fell from 0.6931 to 0.5231:"
    )
    assert accuracy == "Accuracy is 0.82 (95 %: 0.68 to 0.91), better than chance (0.50)."


def test_a_change_that_no_digit_shows(tmp_path: Path) -> None:
    events = [
        replace(event, metrics={**event.metrics, "loss": 0.6931 if event.step else math.log(2)})
        if isinstance(event, Evaluated)
        else event
        for event in story.contender({})
    ]
    labels = range(40)
    scores = ModelScores({"loss": [-2e-5 + 1e-6 * (label % 2) for label in labels]}, labels)
    start = ModelScores({"loss": [0.0] * 40}, labels)
    run = replace(run_of(tmp_path, *events), scores=scores, start_scores=start)
    assert outcome(run)[0].startswith(
        "Hardly anything changed: the loss of 40 held-out pairs went from 0.6931 to 0.6931: -0.0000"
    )


def test_a_run_that_did_harm(tmp_path: Path) -> None:
    loss, accuracy = outcome(run_of(tmp_path, *story.contender({}, lead=-0.6)))
    assert loss.startswith(
        "The run did harm: the loss of 40 held-out pairs rose from 0.6931 to 1.1231:"
    )
    assert accuracy.endswith(", worse than chance (0.50).")


def test_a_difference_that_few_pairs_cannot_prove(tmp_path: Path) -> None:
    small = outcome(run_of(tmp_path / "small", *story.contender({}, lead=-0.16)))[0]
    assert small.startswith("Undecided: the loss of 40 held-out pairs went from 0.6931 to 0.6831:")
    assert "more pairs would settle it" in small
    run = run_of(tmp_path, *story.contender({}, lead=-0.169))
    loss, accuracy = outcome(run)
    assert loss.startswith("Undecided: the loss of 40 held-out pairs went from 0.6931 to 0.6921:")
    assert loss.endswith("too close to be settled by more pairs).")
    assert accuracy.endswith(", which may be chance (0.50).")
    without = replace(run, scores=None)
    assert outcome(without)[0] == (
        "After training, the loss of 40 held-out pairs went from 0.6931 to 0.6921."
    )
    other = ModelScores({"loss": [0.1]}, [0])
    assert outcome(replace(run, start_scores=other))[0].startswith("After training")


def test_a_run_that_proves_nothing(tmp_path: Path) -> None:
    start = [event for event in story.contender({}) if event.time < story.STARTED + 6]
    assert outcome(run_of(tmp_path, *start)) == []
    nothing = outcome(run_of(tmp_path / "other", *story.preparation()))
    assert nothing == [
        "No pairs were held out, so nothing shows whether the run worked on other pairs."
    ]


def test_known_prompts_and_truncation_stand_beside_the_result(tmp_path: Path) -> None:
    pairs = replace(story.PLAN.pairs, truncated=80, held_out_truncated=4, held_out_known=10)
    events = [
        replace(event, plan=replace(event.plan, pairs=pairs))
        if isinstance(event, Planned)
        else event
        for event in story.contender({})
    ]
    _, _, leak, cut = outcome(run_of(tmp_path, *events))
    assert leak.startswith("10 of 40 (25 %) held-out pairs have a prompt that is also trained on")
    assert cut.startswith("80 of 800 (10 %) pairs to train on and 4 of 40 (10 %) held-out pairs")
