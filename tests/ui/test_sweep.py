"""Tests of the output of a sweep: plan, time left, line above the panel, best run."""

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
    wall_seconds,
)
from tests.support import story

GRID = {"dpo.beta": [0.1, 2, 5], "train.epochs": [1, 2]}


@pytest.fixture
def points(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Point]:
    """Six points: A, C and E with one epoch, B, D and F with two."""
    monkeypatch.chdir(tmp_path)
    Path("mine.toml").write_text(
        '[model]\ntokenizer = "t"\n[data]\ndata_path = "p"\n[eval]\nfraction = 0.1\n'
    )
    return load_points(Path("mine.toml"), [], GRID)


def summary(state: RunState, step: int = 100, seconds: float = 60.0) -> RunSummary:
    return RunSummary("mine", state, None, 0.0, step, 100, 0.6, 0.7, None, seconds, 1)


def status(point: Point, state: RunState | None = None, **numbers: float) -> PointStatus:
    return PointStatus(point, None if state is None else summary(state, **numbers))  # type: ignore[arg-type]


def test_time_left_ignores_the_first_run_which_computes_the_caches(
    points: list[Point],
) -> None:
    a, b, c, d, e, f = points
    new = [status(point) for point in points]
    assert seconds_left(new) is None
    assert seconds_left(new, pace=10.0) == 90.0
    first = status(a, RunState.COMPLETED, seconds=100.0)
    assert seconds_left([first, *new[1:]]) == 800.0
    second = status(b, RunState.COMPLETED, seconds=120.0)
    half = status(d, RunState.KILLED, step=50)
    statuses = [first, second, new[2], half, new[4], new[5]]
    assert seconds_left(statuses) == 60.0 * (1 + 1 + 1 + 2)
    assert seconds_left(statuses, pace=1e9) == 300.0
    done = [status(point, RunState.COMPLETED) for point in points]
    assert seconds_left(done) == 0.0
    assert (c.letter, e.letter, f.letter) == ("C", "E", "F")


def test_time_left_on_several_gpus() -> None:
    assert wall_seconds(60.0, 240.0, parallel_runs=1) == 300.0
    assert wall_seconds(60.0, 240.0, parallel_runs=4) == 75.0
    assert wall_seconds(60.0, 20.0, parallel_runs=4) == 60.0  # no run is split


def text(lines: list[object]) -> str:
    console = Console(file=io.StringIO(), width=300, highlight=False, markup=False)
    for line in lines:
        console.print(line)
    assert isinstance(console.file, io.StringIO)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())


def test_the_plan_shows_the_state_of_each_run(points: list[Point]) -> None:
    a, b, c, *rest = points
    statuses = [
        status(a, RunState.COMPLETED, seconds=75),
        status(b, RunState.STOPPED, step=40),
        status(c, RunState.FAILED, step=7),
        *map(status, rest),
    ]
    assert text([*plan_lines("mine", statuses, parallel_runs=2)]) == (
        "sweep mine: 6 runs of mine.toml, 2 at a time, one per GPU\n"
        "   beta  epochs  run\n"
        "A   0.1       1  completed in 1m 15s\n"
        "B   0.1       2  stopped at step 40/100, will resume\n"
        "C     2       1  failed at step 7/100, will resume\n"
        "D     2       2  new\n"
        "E     5       1  new\n"
        "F     5       2  new\n"
        "shared   encoded pairs and reference log-probs, computed by the first run\n"
        "best by  accuracy on the held-out pairs, which are the same for all runs\n"
        "time     about 4m 27s, based on the runs so far"
    )


def completed_runs(root: Path, leads: Mapping[str, float], pairs: int) -> dict[str, RunDirectory]:
    return {
        letter: story.write(root, f"mine-{letter}", *story.contender({}, lead, pairs))
        for letter, lead in leads.items()
    }


def of(runs: Mapping[str, RunDirectory]) -> list[ComparedRun]:
    return [compared_run(letter, run, history(run.events_path)) for letter, run in runs.items()]


def test_best_run_and_runs_it_cannot_be_distinguished_from(
    points: list[Point], tmp_path: Path
) -> None:
    statuses = [status(point, RunState.COMPLETED) for point in points]
    few = completed_runs(tmp_path / "few", {"A": -0.5, "B": 0.05, "C": 0.1}, pairs=40)
    assert text([*best_lines(of(few), statuses, few)]).splitlines()[:2] == [
        "best: C  beta 2  epochs 1: held-out accuracy 0.93 (95 % interval 0.80 to 0.97)",
        "      not distinguishable from B; about 74 more pairs would settle it at 95 %",
    ]
    many = completed_runs(tmp_path / "many", {"A": -0.5, "B": 0.0, "C": 0.1}, pairs=4000)
    assert text([*best_lines(of(many), statuses, many)]).splitlines() == [
        "best: C  beta 2  epochs 1: held-out accuracy 0.93 (95 % interval 0.92 to 0.94)",
        f"export: dpo export {many['C'].path}",
    ]


def test_no_best(points: list[Point], tmp_path: Path) -> None:
    statuses = [status(point, RunState.COMPLETED) for point in points]
    runs = completed_runs(tmp_path, {"A": 0.0, "B": 0.1}, pairs=40)
    a, b = of(runs)
    failed = dataclasses.replace(b, summary=summary(RunState.FAILED))
    assert text([*best_lines([a, failed], statuses, runs)]) == ("best: none: only 1 completed run")
    other = dataclasses.replace(b, settings={**b.settings, "eval": {"fraction": 0.5}})
    assert text([*best_lines([a, other], statuses, runs)]) == (
        "best: none: the held-out pairs differ between the runs"
    )


def test_why_runs_failed(tmp_path: Path) -> None:
    view = RunView.of([*story.preparation(), story.FAILED])
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
