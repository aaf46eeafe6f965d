"""Choice of the metrics that are drawn, and layout of their charts."""

from __future__ import annotations

import math
from dataclasses import dataclass

from rich.text import Text

from dpo_cli.run.events import ACCURACY
from dpo_cli.run.plan import Plan
from dpo_cli.run.view import RunView
from dpo_cli.ui.terminal.charts import FEW_POINTS, Curve, Level, Mark, draw, smooth
from dpo_cli.ui.terminal.layout import Block, beside, draw_frame
from dpo_cli.ui.terminal.plain import step_name

TRAIN, HELD_OUT, CHOSEN, REJECTED = "cyan", "magenta", "green", "red"
_SMALL_WIDTH, _MOST_BESIDE = 30, 3
_ONE_ROW_HEIGHT, _TWO_ROWS_HEIGHT = 17, 34


@dataclass(frozen=True)
class Trace:
    """One metric of a plot, over the training pairs or, if `held_out`, the held-out pairs."""

    metric: str
    name: str
    style: str
    held_out: bool = False
    is_noisy: bool = True


@dataclass(frozen=True)
class Plot:
    """Metrics that share one chart.

    Attributes:
        title: title with the unit, if any.
        traces: metrics that are drawn.
        level: value to compare them with.
        least_span: see `dpo_cli.ui.terminal.charts.draw`.
    """

    title: str
    traces: tuple[Trace, ...]
    level: Level | None = None
    least_span: float = 0.0


def train_and_held_out(
    title: str, metric: str, level: Level | None = None, least_span: float = 0.0
) -> Plot:
    """Return a plot of one metric over training and held-out pairs."""
    traces = (
        Trace(metric, "train", TRAIN),
        Trace(metric, "held-out", HELD_OUT, held_out=True, is_noisy=False),
    )
    return Plot(title, traces, level, least_span)


def train_only(
    title: str, metric: str, level: Level | None = None, *, is_noisy: bool = True
) -> Plot:
    """Return a plot of one metric over the training pairs."""
    return Plot(title, (Trace(metric, "", TRAIN, is_noisy=is_noisy),), level)


_ZERO = Level(0.0, "0")
_LN_2 = math.log(2)
SMALL = (
    train_and_held_out("accuracy", ACCURACY, Level(0.5, "0.5"), 0.2),
    train_and_held_out("margin", "rewards/margins", _ZERO, 1e-3),
    Plot(
        "rewards",
        (
            Trace("rewards/chosen", "chosen", CHOSEN),
            Trace("rewards/rejected", "rejected", REJECTED),
        ),
        _ZERO,
        1e-3,
    ),
    train_only("gradient norm", "grad_norm"),
    train_only("KL, nats per token", "kl", _ZERO),
    train_only("learning rate", "learning_rate", _ZERO, is_noisy=False),
)
"""Small plots in order of importance; the first ones that fit are drawn."""


def charts(view: RunView, width: int, height: int) -> Block:
    """Draw the loss and, below it, as many rows of smaller charts as fit."""
    rows = 2 if height >= _TWO_ROWS_HEIGHT else 1 if height >= _ONE_ROW_HEIGHT else 0
    small_height = height // (rows + 2) if rows else 0
    columns = min(_MOST_BESIDE, max(1, width // _SMALL_WIDTH))
    block = _chart(view, loss_plot(view.plan), width, height - rows * small_height)
    for row in range(rows):
        plots = SMALL[row * columns : (row + 1) * columns]
        widths = [width * (i + 1) // columns - width * i // columns for i in range(columns)]
        line = _chart(view, plots[0], widths[0], small_height)
        for plot, each in zip(plots[1:], widths[1:], strict=True):
            line = beside(line, _chart(view, plot, each, small_height))
        block += line
    return block


def loss_plot(plan: Plan | None) -> Plot:
    """Return the plot of the loss; its level is the loss while policy and reference are equal."""
    start = plan.loss_at_start if plan else _LN_2
    level = None
    if start is not None:
        is_ln_2 = math.isclose(start, _LN_2)
        level = Level(start, "ln 2", "0.693") if is_ln_2 else Level(start, f"{start:.4g}")
    return train_and_held_out("loss", "loss", level, 0.01)


def _chart(view: RunView, plot: Plot, width: int, height: int) -> Block:
    noise, curves = [], []
    for trace in plot.traces:
        series = (view.evaluated if trace.held_out else view.trained).get(trace.metric)
        points = series.points if series else []
        mark = Mark.SPOTS if trace.held_out else Mark.LINE
        if trace.is_noisy and len(points) > FEW_POINTS:
            # Dim red is unreadable on a dark background.
            faint = trace.style if trace.style == REJECTED else f"dim {trace.style}"
            noise.append(Curve(points, faint, Mark.DOTS))
            points = smooth(points)
        if points:
            curves.append(Curve(points, trace.style, mark))
    lines = draw(
        [*noise, *curves],
        width - 4,
        height - 2,
        x_end=view.step,
        x_name=step_name(view.plan),
        level=plot.level,
        least_span=plot.least_span,
    )
    return draw_frame(plot.title, lines, width, height, _legend(plot, width))


def _legend(plot: Plot, width: int) -> Text:
    words = [
        Text.assemble(("⣿ " if trace.held_out else "⠒ ", trace.style), trace.name)
        for trace in plot.traces
        if trace.name
    ]
    legend = Text("  ").join(words)
    return legend if legend.cell_len + len(plot.title) + 9 <= width else Text()
