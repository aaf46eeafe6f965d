"""A sweep as text: what is left to do, the line above the panel, the best and how sure that is."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Mapping
from pathlib import Path

import pytest
from rich.console import Console

from dpo_cli.commands.compared_runs import compared_run
from dpo_cli.profile.grid import Point, load_points
from dpo_cli.run.directory import RunDirectory
from dpo_cli.run.events import history
from dpo_cli.run.summary import RunSummary
from dpo_cli.run.view import RunState, RunView
from dpo_cli.ui.comparison import ComparedRun
from dpo_cli.ui.terminal.dashboard import Dashboard
from dpo_cli.ui.terminal.sweep import (
    PointStatus,
    best_lines,
    failure_lines,
    plan_lines,
    seconds_left,
)
from tests.support import story

GRID = {"dpo.beta": [0.1, 2, 5], "train.epochs": [1, 2]}


@pytest.fixture
def points(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Point]:
    """Six points: A, C and E of one epoch, B, D and F of two."""
    monkeypatch.chdir(tmp_path)
    Path("mine.toml").write_text(
        '[model]\ntokenizer = "t"\n[data]\ndata_path = "p"\n[eval]\nfraction = 0.1\n'
    )
    return load_points(Path("mine.toml"), [], GRID)


def summary(state: RunState, step: int = 100, seconds: float = 60.0) -> RunSummary:
    return RunSummary("mine", state, None, 0.0, step, 100, 0.6, 0.7, None, seconds, 1)


def standing(point: Point, state: RunState | None = None, **its: float) -> PointStatus:
    return PointStatus(point, None if state is None else summary(state, **its))  # type: ignore[arg-type]


def test_what_is_left_goes_by_the_runs_that_computed_nothing_for_others(
    points: list[Point],
) -> None:
    a, b, c, d, e, f = points
    new = [standing(point) for point in points]
    assert seconds_left(new) is None
    assert seconds_left(new, pace=10.0) == 90.0
    first = standing(a, RunState.COMPLETED, seconds=100.0)
    assert seconds_left([first, *new[1:]]) == 800.0
    second = standing(b, RunState.COMPLETED, seconds=120.0)
    half = standing(d, RunState.KILLED, step=50)
    its = [first, second, new[2], half, new[4], new[5]]
    assert seconds_left(its) == 60.0 * (1 + 1 + 1 + 2)
    assert seconds_left(its, pace=1e9) == 300.0
    done = [standing(point, RunState.COMPLETED) for point in points]
    assert seconds_left(done) == 0.0
    assert (c.letter, e.letter, f.letter) == ("C", "E", "F")


def text(lines: list[object]) -> str:
    console = Console(file=io.StringIO(), width=300, highlight=False, markup=False)
    for line in lines:
        console.print(line)
    assert isinstance(console.file, io.StringIO)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())


def test_a_plan_says_where_each_run_is(points: list[Point]) -> None:
    a, b, c, *rest = points
    its = [
        standing(a, RunState.COMPLETED, seconds=75),
        standing(b, RunState.STOPPED, step=40),
        standing(c, RunState.FAILED, step=7),
        *map(standing, rest),
    ]
    assert text([*plan_lines("mine", its, lanes=2)]) == (
        "sweep mine: 6 runs of mine.toml, 2 at once, one a card\n"
        "   beta  epochs  run\n"
        "A   0.1       1  completed in 1m 15s\n"
        "B   0.1       2  stopped at step 40/100, goes on\n"
        "C     2       1  failed at step 7/100, goes on\n"
        "D     2       2  new\n"
        "E     5       1  new\n"
        "F     5       2  new\n"
        "shared   the encoded pairs and the reference's log-probs: the first run computes them\n"
        "best by  the accuracy on the held-out pairs, which are the same for all\n"
        "time     about 4m 27s, as the runs so far"
    )


def contenders(root: Path, leads: Mapping[str, float], pairs: int) -> dict[str, RunDirectory]:
    return {
        letter: story.write(root, f"mine-{letter}", *story.contender({}, lead, pairs))
        for letter, lead in leads.items()
    }


def of(runs: Mapping[str, RunDirectory]) -> list[ComparedRun]:
    return [compared_run(letter, run, history(run.events_path)) for letter, run in runs.items()]


def test_the_best_and_whom_it_is_not_told_from(points: list[Point], tmp_path: Path) -> None:
    its = [standing(point, RunState.COMPLETED) for point in points]
    few = contenders(tmp_path / "few", {"A": -0.5, "B": 0.05, "C": 0.1}, pairs=40)
    assert text([*best_lines(of(few), its, few)]).splitlines()[:2] == [
        "best: C  beta 2  epochs 1: held-out accuracy 0.93 (95 %: 0.80 to 0.97)",
        "      no difference shown to B",
    ]
    many = contenders(tmp_path / "many", {"A": -0.5, "B": 0.0, "C": 0.1}, pairs=4000)
    assert text([*best_lines(of(many), its, many)]).splitlines() == [
        "best: C  beta 2  epochs 1: held-out accuracy 0.93 (95 %: 0.92 to 0.94)",
        f"export: dpo export {many['C'].path}",
    ]


def test_no_best(points: list[Point], tmp_path: Path) -> None:
    its = [standing(point, RunState.COMPLETED) for point in points]
    runs = contenders(tmp_path, {"A": 0.0, "B": 0.1}, pairs=40)
    a, b = of(runs)
    failed = dataclasses.replace(b, summary=summary(RunState.FAILED))
    assert text([*best_lines([a, failed], its, runs)]) == (
        "best: none: 1 completed run: there is nothing to choose from"
    )
    other = dataclasses.replace(b, settings={**b.settings, "eval": {"fraction": 0.5}})
    assert text([*best_lines([a, other], its, runs)]) == (
        "best: none: the held-out pairs are not the same for all runs"
    )


def test_why_runs_failed(tmp_path: Path) -> None:
    from tests.ui.test_dashboard import FAILED

    view = RunView.of([*story.preparation(), FAILED])
    run = ComparedRun("B", summary(RunState.FAILED), view, {})
    assert text([*failure_lines([run])]).startswith(
        "B failed: optimizer step 87: the loss is not a finite number"
    )


@pytest.mark.parametrize(("width", "height"), [(80, 24), (160, 50)])
def test_the_line_above_the_panel_takes_one_line(width: int, height: int) -> None:
    from rich.text import Text

    view = RunView.of([*story.preparation(), *story.training(0, 170)])
    whole = (Text("mine  C of A-F  beta 2"), Text("2 of 6 done, ~12m 00s left"))
    console = Console(width=width, height=height)
    plain = Dashboard(view, "mine-C", Path("runs/mine-C"), now=view.time)
    lines = dataclasses.replace(plain, headline=whole).lines(console, width, height)
    assert len(lines) == height
    assert {line.cell_len for line in lines} == {width}
    assert lines[0].plain.startswith("mine  C of A-F  beta 2  ")
    assert lines[0].plain.endswith("2 of 6 done, ~12m 00s left")
    assert lines[1].plain == plain.lines(console, width, height)[0].plain
