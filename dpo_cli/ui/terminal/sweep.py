"""Terminal output of a sweep: plan, progress, panel of the current run, best run."""

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
from dpo_cli.shell import dpo_command
from dpo_cli.ui.comparison import ComparedRun, best, indistinguishable, join_names
from dpo_cli.ui.significance import pairs_to_settle, still_needed
from dpo_cli.ui.terminal.ending import failure
from dpo_cli.ui.terminal.panel import Panel

_NO_PAIRS = "without held-out pairs there is no best run; set eval.fraction to hold out some pairs"


@dataclass(frozen=True)
class PointStatus:
    """Point of the grid and the state of its run; `summary` is None before the run starts."""

    point: Point
    summary: RunSummary | None

    @property
    def is_completed(self) -> bool:
        """Return True if the run is completed."""
        return self.summary is not None and self.summary.state is RunState.COMPLETED

    @property
    def share(self) -> float:
        """Share of the steps that are done."""
        run = self.summary
        return run.step / run.total_steps if run and run.total_steps else 0.0

    @property
    def text(self) -> str:
        """State of the run in words."""
        run = self.summary
        if run is None:
            return "new"
        if run.state is RunState.COMPLETED:
            return f"completed in {format_duration(run.seconds)}"
        noun = "micro-step" if self.point.profile.train.accumulation_on(1) > 1 else "step"
        where = f"{noun} {format_progress(run.step, run.total_steps)}"
        return f"{run.state} at {where}" + (f" ({run.holder})" if run.holder else ", will resume")


def point_statuses(points: Sequence[Point], runs: Mapping[str, RunDirectory]) -> list[PointStatus]:
    """Summarize the run of each point."""
    return [
        PointStatus(point, summarize(runs[point.letter]) if point.letter in runs else None)
        for point in points
    ]


def seconds_left(statuses: Sequence[PointStatus], pace: float | None = None) -> float | None:
    """Estimate the time for the remaining steps, one run after another; None without an estimate.

    The mean excludes the first run, which also encodes the pairs and computes the reference.

    Args:
        statuses: all points.
        pace: seconds per epoch, used until a run is completed.
    """
    epoch_seconds = [
        status.summary.seconds / status.point.profile.train.epochs
        for status in statuses
        if status.summary and status.is_completed
    ]
    without_first = epoch_seconds[1:] or epoch_seconds
    if without_first:
        pace = sum(without_first) / len(without_first)
    if pace is None:
        return None
    left = [
        each.point.profile.train.epochs * (1 - each.share)
        for each in statuses
        if not each.is_completed
    ]
    return pace * sum(left)


def wall_seconds(current: float, others: float, parallel_runs: int) -> float:
    """Return the seconds until the sweep ends, when the GPUs share its runs.

    Args:
        current: seconds left of the run that is shown; it has one GPU only.
        others: seconds left of the other runs, one after another.
        parallel_runs: runs that train at the same time, one per GPU.
    """
    return max(current, (current + others) / parallel_runs)


# --- the plan ------------------------------------------------------------------------------------


def plan_table(statuses: Sequence[PointStatus]) -> Table:
    """Return a table of the points: values and state of the run."""
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    table.add_column("", style="bold")
    for key in statuses[0].point.values:
        table.add_column(short_key(key), justify="right", overflow="fold")
    table.add_column("run", overflow="fold")
    for each in statuses:
        values = map(show_value, each.point.values.values())
        table.add_row(each.point.letter, *values, each.text)
    return table


def plan_lines(
    name: str, statuses: Sequence[PointStatus], parallel_runs: int
) -> list[Text | Table]:
    """Return the plan of a sweep."""
    points = [each.point for each in statuses]
    at_once = (
        f"{parallel_runs} at a time, one per GPU" if parallel_runs > 1 else "one after another"
    )
    path = show_path(points[0].loaded.path)
    facts = {
        "shared": _shared(points),
        "best by": _best_by(points),
        "time": _time(statuses, parallel_runs),
    }
    return [
        Text.assemble((f"sweep {name}", "bold"), f": {len(statuses)} runs of {path}, {at_once}"),
        plan_table(statuses),
        *(Text.assemble((label.ljust(9), "dim"), fact) for label, fact in facts.items()),
    ]


def _shared(points: Sequence[Point]) -> str:
    profiles = [point.profile for point in points]
    if cache_directory() is None:
        return "nothing: there is no cache directory; set DPO_CACHE_DIR"
    keys = [key for key in points[0].values if key in keys_affecting(Affects.TOKENS)]
    pairs = (
        f"encoded pairs per value of {join_names(map(short_key, keys))}"
        if keys
        else "encoded pairs"
    )
    needed = count_references(profiles)
    if needed == 0:
        layouts = {profile.train.layout for profile in profiles}
        if "padded" in layouts:
            return f'{pairs}; train.layout = "padded" runs the reference on every batch'
        return f"{pairs}; these losses need no reference"
    if needed == 1:
        return f"{pairs} and reference log-probs, computed by the first run"
    return f"{pairs}; reference log-probs are computed {needed} times, because the batches differ"


def _best_by(points: Sequence[Point]) -> str:
    if not all(has_held_out_pairs(point.profile) for point in points):
        return _NO_PAIRS
    if keys := keys_changing_held_out(points):
        return f"no ranking, because the held-out pairs depend on {join_names(keys)}"
    return "accuracy on the held-out pairs, which are the same for all runs"


def _time(statuses: Sequence[PointStatus], parallel_runs: int) -> str:
    if all(each.is_completed for each in statuses):
        return "all runs are completed"
    left = seconds_left(statuses)
    if left is None:
        return "estimated after the first completed run; `dpo check` estimates it now"
    return f"about {format_duration(left / parallel_runs)}, based on the runs so far"


def plan_as_json(statuses: Sequence[PointStatus]) -> list[dict[str, Any]]:
    """Return the points as plain values."""
    return [
        {
            "letter": each.point.letter,
            "values": dict(each.point.values),
            "run": each.summary.name if each.summary else None,
            "state": each.summary.state if each.summary else None,
        }
        for each in statuses
    ]


# --- while it runs -------------------------------------------------------------------------------


class SweepPanel(Panel):
    """Panel of the current run of a sweep, below a line about the sweep.

    Args:
        sweep: directory of the sweep, the only source of the panel's data.
        points: points of the grid.
        parallel_runs: runs that train at the same time, one per GPU.
        console: a terminal.
    """

    def __init__(
        self,
        sweep: SweepDirectory,
        points: Sequence[Point],
        parallel_runs: int,
        console: Console,
    ) -> None:
        # Until the first run starts, the sweep's directory stands in for the run's.
        super().__init__(RunDirectory(sweep.path), console, lambda: ())
        self._sweep, self._points, self._parallel_runs = sweep, points, parallel_runs
        self._point: Point | None = None
        self._statuses: list[PointStatus] = []

    @property
    def run(self) -> RunDirectory:
        """Run that is shown."""
        return self._run

    def catch_up(self) -> None:
        """Process new events, and switch to the run that is training."""
        runs = self._sweep.runs()
        training = [p for p in self._points if p.letter in runs and runs[p.letter].holder()]
        if training and training[-1] is not self._point:
            super().catch_up()  # the last events of the previous run
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
        parts = [f"{done} of {len(self._points)} done", *([f"{failed} failed"] if failed else [])]
        if (seconds := self._seconds_left()) is not None:
            parts.append(f"~{format_duration(seconds)} left")
        return left, Text(f"  {', '.join(parts)}")

    def _seconds_left(self) -> float | None:
        """Estimate from the current run's own pace, and from completed runs for the others."""
        now = self.view.seconds_left(self._clock())
        if now is None or self._point is None:
            work = seconds_left(self._statuses)
            return None if work is None else work / self._parallel_runs
        pace = self.view.seconds_per_step * self.view.total_steps / self._point.profile.train.epochs
        others = [each for each in self._statuses if each.point is not self._point]
        return wall_seconds(now, seconds_left(others, pace) or 0.0, self._parallel_runs)


# --- end ----------------------------------------------------------------------------------------


def completed(runs: Sequence[ComparedRun]) -> list[ComparedRun]:
    """Return the completed runs; only these can be the best."""
    return [run for run in runs if run.summary.state is RunState.COMPLETED]


def best_lines(
    runs: Sequence[ComparedRun],
    statuses: Sequence[PointStatus],
    directories: Mapping[str, RunDirectory],
) -> list[Text]:
    """Return the best run and the runs it cannot be distinguished from, or why there is none."""
    runs = completed(runs)
    first = best(runs)
    if first is None or first.accuracy is None:
        if len(runs) < 2:
            why = f"only {format_count(len(runs), 'completed run')}"
        elif any(run.accuracy is None for run in runs):
            why = _NO_PAIRS
        else:
            why = "the held-out pairs differ between the runs"
        return [Text.assemble(("best: ", "bold yellow"), f"none: {why}")]
    accuracy, (low, high) = first.accuracy
    text = next(each.point.text for each in statuses if each.point.letter == first.letter)
    result = f"held-out accuracy {accuracy:.2f} (95 % interval {low:.2f} to {high:.2f})"
    lines = [Text.assemble(("best: ", "bold green"), f"{first.letter}  {text}: {result}")]
    results = indistinguishable(first, runs)
    if close := [letter for letter, result in results.items() if result]:
        settles = still_needed("; ", pairs_to_settle(filter(None, results.values())))
        how = f"{settles} at 95 %" if settles else ""
        lines.append(Text(f"      not distinguishable from {join_names(close)}{how}"))
    if untested := [letter for letter, result in results.items() if result is None]:
        lines.append(
            Text(f"      not compared with {join_names(untested)}: no scores of each pair")
        )
    export = dpo_command("export", directories[first.letter].designation)
    lines.append(Text.assemble(("export: ", "dim"), export))
    return lines


def failure_lines(runs: Sequence[ComparedRun]) -> list[Text]:
    """Return the errors of failed runs and their remedies."""
    lines = []
    for run in runs:
        if run.summary.state is not RunState.COMPLETED and (failed := failure(run.view)):
            message, remedy = failed
            lines.append(Text.assemble((f"{run.letter} failed: ", "bold red"), message))
            lines += [Text.assemble(("help: ", "bold cyan"), remedy)] if remedy else []
    return lines
