"""Charts of one or several runs, as data; `dpo_cli.ui.html.svg` draws them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dpo_cli.intervals import wilson_interval
from dpo_cli.run.series import Point
from dpo_cli.ui.comparison import ACCURACY, ComparedRun
from dpo_cli.ui.terminal.charts import FEW_POINTS, Level, smooth
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
"""How many curves can be told apart by color; see `dpo_cli.ui.html.svg.STYLE`."""

_MORE = (
    train_and_held_out("gap, nats per token", "margin_per_token"),
    train_and_held_out("entropy, nats per token", "entropy"),
    train_only("throughput, pairs per second", "pairs_per_second"),
    train_only("aux loss of experts", "aux_loss"),
    train_only("weights changed in half precision", "weights_moved"),
)
"""Curves for which the panel has no room."""


@dataclass(frozen=True)
class Line:
    """One curve of a chart.

    Attributes:
        name: what it is; may be empty.
        letter: of its run, if there are several.
        color: 0 to `COLORS` - 1.
        points: in ascending order of x; smoothed where `raw` says what they are made of.
        raw: the values behind, at the same x; empty where nothing was smoothed.
        is_held_out: drawn with a mark at each point.
        is_dashed: to be told from another of the same color.
        intervals: the ends of each point's 95 % interval, or empty.
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
    level: Level | None
    least_span: float


def charts_of(runs: Sequence[ComparedRun]) -> list[Chart]:
    """Everything there is to draw of some runs: the colors are the curves', or else the runs'."""
    x_end = max(run.view.step for run in runs)
    plots = (loss_plot(runs[0].view.plan), *SMALL, *_MORE)
    drawn = [(plot, _lines(plot, runs)) for plot in plots]
    return [
        Chart(plot.title, lines, x_end, plot.level, plot.least_span)
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


def _line(trace: Trace, run: ComparedRun, is_dashed: bool, number: int | None) -> Line:
    """The color is that of the trace, or of the run where it is the one of this `number`."""
    series = (run.view.evaluated if trace.held_out else run.view.trained).get(trace.metric)
    points = series.points if series else []
    is_smoothed = trace.is_noisy and len(points) > FEW_POINTS
    intervals: list[tuple[float, float]] = []
    if trace.held_out and trace.metric == ACCURACY and number is None and run.view.held_out:
        intervals = [wilson_interval(share, run.view.held_out.pairs) for _, share in points]
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
