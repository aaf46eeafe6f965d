"""A sweep on the terminal: its plan, how far it is, the panel of the run that trains, its best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from dpo_cli.files import cache_directory
from dpo_cli.formatting import format_count, format_duration, format_progress
from dpo_cli.profile.grid import (
    Point,
    count_references,
    has_held_out_pairs,
    keys_changing_held_out,
    short_key,
)
from dpo_cli.profile.schema import keys_affecting
from dpo_cli.profile.table import Affects
from dpo_cli.profile.text import show_path, show_value
from dpo_cli.run.directory import RunDirectory
from dpo_cli.run.events import EventReader
from dpo_cli.run.summary import RunSummary, summarize
from dpo_cli.run.sweep import SweepDirectory
from dpo_cli.run.view import RunState, RunView
from dpo_cli.ui.comparison import ComparedRun, best, listed, rivals
from dpo_cli.ui.terminal.ending import failure
from dpo_cli.ui.terminal.panel import Panel

_NO_PAIRS = "no pairs are held out, so no best can be named; eval.fraction = 0.1 holds out a tenth"


@dataclass(frozen=True)
class PointStatus:
    """A point, and what has become of its run; None where it was not started yet."""

    point: Point
    summary: RunSummary | None

    @property
    def is_completed(self) -> bool:
        """Whether nothing is left to do."""
        return self.summary is not None and self.summary.state is RunState.COMPLETED

    @property
    def share(self) -> float:
        """Of its steps, those that are done."""
        its = self.summary
        return its.step / its.total_steps if its and its.total_steps else 0.0

    @property
    def text(self) -> str:
        """What has become of it, in words."""
        its = self.summary
        if its is None:
            return "new"
        if its.state is RunState.COMPLETED:
            return f"completed in {format_duration(its.seconds)}"
        where = f"step {format_progress(its.step, its.total_steps)}"
        return f"{its.state} at {where}" + (f" by {its.holder}" if its.holder else ", goes on")


def point_statuses(points: Sequence[Point], runs: Mapping[str, RunDirectory]) -> list[PointStatus]:
    """What has become of each point, by its run's own account."""
    return [
        PointStatus(point, summarize(runs[point.letter]) if point.letter in runs else None)
        for point in points
    ]


def seconds_left(its: Sequence[PointStatus], pace: float | None = None) -> float | None:
    """Of all steps that are not done; None while nothing tells.

    Args:
        its: all points.
        pace: seconds an epoch, until a run is completed. The first completed one has computed what
            the others share, so that later ones tell more.
    """
    done = [
        each.summary.seconds / each.point.profile.train.epochs
        for each in its
        if each.summary and each.is_completed
    ]
    later = done[1:] or done
    if later:
        pace = sum(later) / len(later)
    if pace is None:
        return None
    left = [
        each.point.profile.train.epochs * (1 - each.share) for each in its if not each.is_completed
    ]
    return pace * sum(left)


# --- the plan ------------------------------------------------------------------------------------


def plan_table(its: Sequence[PointStatus]) -> Table:
    """The points, one a row: their values, and what has become of them."""
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    table.add_column("", style="bold")
    for key in its[0].point.values:
        table.add_column(short_key(key), justify="right", overflow="fold")
    table.add_column("run", overflow="fold")
    for each in its:
        values = map(show_value, each.point.values.values())
        table.add_row(each.point.letter, *values, each.text)
    return table


def plan_lines(name: str, its: Sequence[PointStatus], lanes: int) -> list[Text | Table]:
    """What there is to know before anything runs."""
    points = [each.point for each in its]
    at_once = f"{lanes} at once, one a card" if lanes > 1 else "one after another"
    path = show_path(points[0].loaded.path)
    facts = {"shared": _shared(points), "best by": _judged_by(points), "time": _time(its, lanes)}
    return [
        Text.assemble((f"sweep {name}", "bold"), f": {len(its)} runs of {path}, {at_once}"),
        plan_table(its),
        *(Text.assemble((label.ljust(9), "dim"), fact) for label, fact in facts.items()),
    ]


def _shared(points: Sequence[Point]) -> str:
    profiles = [point.profile for point in points]
    if cache_directory() is None:
        return "nothing: this user has no home for a cache; set DPO_CACHE_DIR"
    its_own = [key for key in points[0].values if key in keys_affecting(Affects.TOKENS)]
    pairs = (
        f"encoded pairs by {listed(map(short_key, its_own))}" if its_own else "the encoded pairs"
    )
    needed = count_references(profiles)
    if needed == 0:
        layouts = {profile.train.layout for profile in profiles}
        if "padded" in layouts:
            return f'{pairs}; train.layout = "padded" runs the reference on every batch'
        return f"{pairs}; these losses need no reference"
    if needed == 1:
        return f"{pairs} and the reference's log-probs: the first run computes them"
    return f"{pairs}; the reference's log-probs are computed {needed} times, as batches differ"


def _judged_by(points: Sequence[Point]) -> str:
    if not all(has_held_out_pairs(point.profile) for point in points):
        return _NO_PAIRS
    if keys := keys_changing_held_out(points):
        return f"nothing: under {listed(keys)} the held-out pairs are not the same for all runs"
    return "the accuracy on the held-out pairs, which are the same for all"


def _time(its: Sequence[PointStatus], lanes: int) -> str:
    if all(each.is_completed for each in its):
        return "nothing is left to do"
    left = seconds_left(its)
    if left is None:
        return "told once the first run trains; `dpo check` measures it before"
    return f"about {format_duration(left / lanes)}, as the runs so far"


def plan_as_json(its: Sequence[PointStatus]) -> list[dict[str, Any]]:
    """The points in plain values."""
    return [
        {
            "letter": each.point.letter,
            "values": dict(each.point.values),
            "run": each.summary.name if each.summary else None,
            "state": each.summary.state if each.summary else None,
        }
        for each in its
    ]


# --- while it runs -------------------------------------------------------------------------------


class SweepPanel(Panel):
    """The panel of whichever run of a sweep trains, under a line about the whole.

    Args:
        sweep: on disk; that is all it learns it from.
        points: of its grid.
        console: a terminal.
    """

    def __init__(self, sweep: SweepDirectory, points: Sequence[Point], console: Console) -> None:
        # Until there is a run, its place is the sweep's.
        super().__init__(RunDirectory(sweep.path), console, lambda: ())
        self._sweep, self._points = sweep, points
        self._point: Point | None = None
        self._statuses: list[PointStatus] = []

    @property
    def run(self) -> RunDirectory:
        """The one that is shown."""
        return self._run

    def catch_up(self) -> None:
        """Take in what is new, and turn to another run where that is the one that trains."""
        runs = self._sweep.runs()
        training = [p for p in self._points if p.letter in runs and runs[p.letter].holder()]
        if training and training[-1] is not self._point:
            super().catch_up()  # how the last one ended
            self._point = training[-1]
            self._run = runs[self._point.letter]
            self._read_new = EventReader(self._run.events_path).read_new
            self._statuses = point_statuses(self._points, runs)
            self.view = RunView()
            super().catch_up()
            if self.view.ending is not None:
                self.view.expect_start()
        super().catch_up()

    def _headline(self) -> tuple[Text, Text] | None:
        if self._point is None:
            return Text(self._sweep.designation, style="bold"), Text()
        left = Text.assemble(
            (self._sweep.name, "bold"),
            f"  {self._point.letter} of {self._points[0].letter}-{self._points[-1].letter}  ",
            (self._point.text, "cyan"),
        )
        done = sum(each.is_completed for each in self._statuses)
        failed = sum(
            each.summary is not None and each.summary.state in (RunState.FAILED, RunState.KILLED)
            for each in self._statuses
            if each.point is not self._point
        )
        told = [f"{done} of {len(self._points)} done", *([f"{failed} failed"] if failed else [])]
        if (seconds := self._seconds_left()) is not None:
            told.append(f"~{format_duration(seconds)} left")
        return left, Text(f"  {', '.join(told)}")

    def _seconds_left(self) -> float | None:
        """Of the run that trains by its own steps; of those after it by the runs before it."""
        now = self.view.seconds_left(self._clock())
        if now is None or self._point is None:
            return seconds_left(self._statuses)
        pace = self.view.seconds_per_step * self.view.total_steps / self._point.profile.train.epochs
        others = [each for each in self._statuses if each.point is not self._point]
        return now + (seconds_left(others, pace) or 0.0)


# --- its end -------------------------------------------------------------------------------------


def completed(runs: Sequence[ComparedRun]) -> list[ComparedRun]:
    """Those among which there is a best."""
    return [run for run in runs if run.summary.state is RunState.COMPLETED]


def best_lines(
    runs: Sequence[ComparedRun], its: Sequence[PointStatus], directories: Mapping[str, RunDirectory]
) -> list[Text]:
    """The best of a sweep, and whether that can be told; or why none is named."""
    runs = completed(runs)
    first = best(runs)
    if first is None or first.accuracy is None:
        if len(runs) < 2:
            why = f"{format_count(len(runs), 'completed run')}: there is nothing to choose from"
        elif any(run.accuracy is None for run in runs):
            why = _NO_PAIRS
        else:
            why = "the held-out pairs are not the same for all runs"
        return [Text.assemble(("best: ", "bold yellow"), f"none: {why}")]
    share, (low, high) = first.accuracy
    text = next(each.point.text for each in its if each.point.letter == first.letter)
    proof = f"held-out accuracy {share:.2f} (95 %: {low:.2f} to {high:.2f})"
    lines = [Text.assemble(("best: ", "bold green"), f"{first.letter}  {text}: {proof}")]
    if close := rivals(first, runs):
        lines.append(Text(f"      no difference shown to {listed(close)}"))
    lines.append(
        Text.assemble(("export: ", "dim"), f"dpo export {directories[first.letter].designation}")
    )
    return lines


def failure_lines(runs: Sequence[ComparedRun]) -> list[Text]:
    """Why runs failed, and what to do about it."""
    lines = []
    for run in runs:
        if run.summary.state is not RunState.COMPLETED and (told := failure(run.view)):
            lines.append(Text.assemble((f"{run.letter} failed: ", "bold red"), told[0]))
            lines += [Text.assemble(("help: ", "bold cyan"), told[1])] if told[1] else []
    return lines
