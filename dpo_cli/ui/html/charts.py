"""Charts of one or several runs, as data; `dpo_cli.ui.html.svg` draws them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dpo_cli.intervals import HIGH, LOW
from dpo_cli.run.events import ACCURACY
from dpo_cli.run.series import Point
from dpo_cli.ui.comparison import ComparedRun
from dpo_cli.ui.terminal.charts import FEW_POINTS, Level, smooth
from dpo_cli.ui.terminal.plain import step_name
from dpo_cli.ui.terminal.plots import (
    CHOSEN,
    HELD_OUT,
    REJECTED,
    SMALL,
    TRAIN,
    Plot,
    Trace,
    loss_plot,
    train_and_held_out,
    train_only,
)

_COLOR_OF = {TRAIN: 0, HELD_OUT: 1, CHOSEN: 2, REJECTED: 3}
COLORS = 8
"""Number of distinct colors; see `dpo_cli.ui.html.svg.STYLE`."""

_MORE = (
    train_and_held_out("margin per token, nats", "margin_per_token"),
    train_and_held_out("entropy, nats per token", "entropy"),
    train_only("throughput, pairs per second", "pairs_per_second"),
    train_only("aux_loss of experts", "aux_loss"),
    train_only("weights changed in half precision", "weights_moved"),
)
"""Plots that the panel has no room for."""


@dataclass(frozen=True)
class Line:
    """One curve of a chart.

    Attributes:
        name: name in the legend; may be empty.
        letter: letter of the run, if there are several.
        color: 0 to `COLORS` - 1.
        points: in ascending order of x; smoothed if `raw` is not empty.
        raw: the values before smoothing, at the same x.
        is_held_out: True to mark each point.
        is_dashed: True for the second curve of the same color.
        intervals: 95 % interval of each point, or empty.
    """

    name: str
    letter: str
    color: int
    points: Sequence[Point]
    raw: Sequence[float] = ()
    is_held_out: bool = False
    is_dashed: bool = False
    intervals: Sequence[tuple[float, float]] = ()


@dataclass(frozen=True)
class Chart:
    """Curves in one frame, over steps from 0 to `x_end`; see `dpo_cli.ui.terminal.charts.draw`."""

    title: str
    lines: Sequence[Line]
    x_end: float
    x_name: str
    level: Level | None
    least_span: float


def charts_of(runs: Sequence[ComparedRun]) -> list[Chart]:
    """Return all charts of some runs; colors denote curves of one run, or else the runs."""
    x_end = max(run.view.step for run in runs)
    x_name = step_name(*(run.plan for run in runs))
    plots = (loss_plot(runs[0].view.plan), *SMALL, *_MORE)
    drawn = [(plot, _lines(plot, runs)) for plot in plots]
    return [
        Chart(plot.title, lines, x_end, x_name, plot.level, plot.least_span)
        for plot, lines in drawn
        if any(len(line.points) > 1 for line in lines)
    ]


def _lines(plot: Plot, runs: Sequence[ComparedRun]) -> list[Line]:
    lines = []
    for number, run in enumerate(runs):
        for place, trace in enumerate(plot.traces):
            line = _line(trace, run, place > 0, number if len(runs) > 1 else None)
            if line.points:
                lines.append(line)
    return lines


def _accuracy_intervals(run: ComparedRun, points: Sequence[Point]) -> list[tuple[float, float]]:
    """Return the 95 % interval of each accuracy; empty if a damaged stream lacks one."""
    curves = [run.view.evaluated.get(ACCURACY + end) for end in (LOW, HIGH)]
    low, high = ([value for _, value in curve.points] if curve else [] for curve in curves)
    return list(zip(low, high, strict=True)) if len(low) == len(high) == len(points) else []


def _line(trace: Trace, run: ComparedRun, is_dashed: bool, number: int | None) -> Line:
    """Return one curve, in the color of the trace or, with a `number`, of that run."""
    series = (run.view.evaluated if trace.held_out else run.view.trained).get(trace.metric)
    points = series.points if series else []
    is_smoothed = trace.is_noisy and len(points) > FEW_POINTS
    intervals: list[tuple[float, float]] = []
    if trace.held_out and trace.metric == ACCURACY and number is None:
        intervals = _accuracy_intervals(run, points)
    return Line(
        trace.name,
        "" if number is None else run.letter,
        (_COLOR_OF[trace.style] if number is None else number) % COLORS,
        smooth(points) if is_smoothed else points,
        [value for _, value in points] if is_smoothed and number is None else (),
        trace.held_out,
        is_dashed and number is not None,
        intervals,
    )
