"""Tests of `dpo compare` on hand-made runs."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from dpo_cli.profile.text import show_value
from dpo_cli.run.directory import RunDirectory
from dpo_cli.run.events import Stopped
from dpo_cli.ui.comparison import Difference
from tests.commands.conftest import Cli
from tests.support import story
from tests.support.snapshots import assert_snapshot

pytestmark = pytest.mark.usefixtures("root")

LOW_BETA = {"dpo": {"beta": 0.1, "reduction": "mean"}}
FAST = {"train": {**story.SETTINGS["train"], "learning_rate": 1e-5}}


def written(root: Path, name: str, *events: object) -> RunDirectory:
    """Make a run with a fixed name."""
    run = story.write(root, name, *events)  # type: ignore[arg-type]
    path = run.path.with_name(f"{name}-20260101-120000-ab12")
    os.rename(run.path, path)
    return RunDirectory(path)


@pytest.fixture
def three(root: Path) -> None:
    written(root, "plain", *story.contender({}))
    written(root, "faster", *story.contender(FAST, lead=0.05))
    written(root, "失败的", *story.contender(FAST | LOW_BETA, lead=-0.4))


@pytest.mark.parametrize(("width", "height"), [(80, 24), (160, 50)])
def test_snapshots(dpo: Cli, three: None, width: int, height: int) -> None:
    size = ("--width", str(width), "--height", str(height))
    code, out, err = dpo("compare", "plain", "faster", "失败的", *size)
    assert (code, err) == (0, "")
    assert_snapshot(f"compare-{width}x{height}", out)


def test_differences_are_listed_with_the_value_of_each_run(dpo: Cli, three: None) -> None:
    out = dpo("compare", "plain", "faster", "失败的", "--width", "120")[1]
    lines = [line.rstrip() for line in out.splitlines()]
    assert "dpo.beta             A B 5.0  C 0.1" in lines
    assert "train.learning_rate  A 1e-6  B C 1e-5" in lines
    assert not any(line.startswith(("data.", "content of", "model.")) for line in lines)


def test_facts_are_written_without_quotes() -> None:
    threads = Difference("threads", ("1", "2", None))
    assert [*threads.groups("ABC")] == ["1", "2", show_value(None)]
    assert [*Difference("train.device", ("cpu", "auto")).groups("AB")] == ['"cpu"', '"auto"']


def test_as_json(dpo: Cli, three: None) -> None:
    found = json.loads(dpo("compare", "plain", "faster", "--json")[1])
    assert found["best"] == "faster-20260101-120000-ab12"
    assert found["differences"] == {"train.learning_rate": [1e-6, 1e-5]}
    first, second = found["runs"]
    assert (first["letter"], first["state"], first["step"]) == ("A", "completed", 400)
    assert first["held_out"]["pairs"] == 40
    assert first["held_out"]["metrics"]["rewards/accuracies"] == pytest.approx(33 / 40)
    low, high = first["held_out"]["accuracy_interval"]
    assert 0.67 < low < 33 / 40 < high < 0.92
    assert second["final"]["loss"] == pytest.approx(0.5026, abs=1e-4)
    assert first["held_out"]["at_start"]["loss"] == pytest.approx(0.6931)


def notes(dpo: Cli, *names: str) -> list[str]:
    return list(json.loads(dpo("compare", *names, "--json")[1])["notes"])


def test_a_small_sample_does_not_distinguish_runs_and_a_large_one_does(
    dpo: Cli, root: Path
) -> None:
    written(root, "a", *story.contender({}))
    written(root, "b", *story.contender(FAST, lead=0.1))
    written(root, "c", *story.contender({}, pairs=4000))
    written(root, "d", *story.contender(FAST, pairs=4000, lead=0.1))
    best, few = notes(dpo, "a", "b")
    assert best == "B has the highest held-out accuracy: 0.93 over 40 pairs"
    assert few.startswith(
        "B vs. A, pair by pair: accuracy: 4 pairs to 0, p = 0.12, about 17 more pairs would settle"
        " it at 95 %; loss -0.1000 (95 %: -0.1"
    )
    _, many = notes(dpo, "c", "d")
    assert "accuracy: 400 pairs to 0, p < 0.001, significant; loss -0.1000 (95 %: " in many
    written(root, "e", *story.contender({}))
    equal, alike = notes(dpo, "a", "e")
    assert equal == "A and B have the highest held-out accuracy: 0.82 over 40 pairs"
    assert alike == (
        "A vs. B, pair by pair: accuracy: right about the same pairs; loss equal for every pair"
    )
    different, *again = notes(dpo, "a", "b", "c")
    assert different == ("held-out metrics compare only among runs with the same pairs: A and B; C")
    assert again == [best, few]
    [compared] = json.loads(dpo("compare", "a", "b", "--json")[1])["comparisons"]
    assert (compared["run"], compared["other"]) == ("B", "A")
    assert compared["accuracies"]["rewards/accuracies"]["p"] == 0.125
    assert compared["differences"]["loss"]["mean"] == pytest.approx(-0.1)


def test_runs_without_stored_scores_are_not_tested(dpo: Cli, root: Path) -> None:
    a = written(root, "a", *story.contender({}))
    written(root, "b", *story.contender(FAST, lead=0.1))
    for scores in a.held_out_path.iterdir():
        scores.unlink()
    assert notes(dpo, "a", "b")[-1] == (
        "B vs. A: not tested, because the scores of each pair are not stored; dpo eval computes"
        " them"
    )


def test_a_run_that_equals_its_reference_has_no_accuracy(dpo: Cli, root: Path) -> None:
    written(root, "a", *story.contender({}))
    start = [event for event in story.contender({}) if event.time < story.STARTED + 6]
    written(root, "b", *start, Stopped(reason="interrupted", step=0, optimizer_step=0))
    assert "B equals its reference on the held-out pairs: no accuracy" in notes(dpo, "a", "b")
    assert json.loads(dpo("compare", "a", "b", "--json")[1])["best"] is None


def test_runs_that_cannot_be_compared_are_named(dpo: Cli, root: Path) -> None:
    written(root, "whole", *story.contender({}))
    half = [event for event in story.contender(LOW_BETA) if event.time < story.STARTED + 300]
    written(root, "half", *half, Stopped(reason="interrupted", step=196, optimizer_step=98))
    written(root, "none", *story.preparation())
    told = notes(dpo, "whole", "half", "none")
    assert told[0].startswith("the runs have different objectives")
    assert told[1] == "B and C are not completed"
    assert told[2] == "C has no held-out pairs"
    other_split = {"eval": {"fraction": 0.06}}
    written(root, "other", *story.contender(other_split))
    assert notes(dpo, "whole", "other")[-1].endswith("the same pairs: A; B")


def test_runs_that_have_not_begun_are_shown_too(dpo: Cli, root: Path) -> None:
    for name in "ab":
        written(root, name)
    code, out, err = dpo("compare", "a", "b")
    assert (code, err) == (0, "")
    assert "0/?" in out


def test_one_run_and_a_missing_one_are_usage_errors(dpo: Cli, three: None) -> None:
    assert dpo("compare", "plain") == (
        2,
        "",
        "error: dpo compare needs two runs\nhelp: Name a second run; dpo runs lists them.\n",
    )
    assert dpo("compare", "plain", "plain")[0] == 2
    assert "there is no run 'fastr'" in dpo("compare", "plain", "fastr")[2]
