"""Terminal output of `dpo compare`: differences, charts and metrics of several runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from dpo_cli.formatting import (
    MISSING,
    format_duration,
    format_number,
    format_progress,
    format_with_interval,
)
from dpo_cli.printable import one_line
from dpo_cli.ui.comparison import ComparedRun, differences, notes
from dpo_cli.ui.terminal.charts import FEW_POINTS, Curve, Mark, draw, smooth
from dpo_cli.ui.terminal.layout import Block, beside, draw_frame
from dpo_cli.ui.terminal.plain import step_name
from dpo_cli.ui.terminal.plots import SMALL, Plot, loss_plot

STYLES = ("cyan", "magenta", "green", "yellow", "blue", "red")
_LEAST_CHART_WIDTH, _MOST_BESIDE = 40, 3
_LEAST_CHART_HEIGHT, _TWO_ROWS_HEIGHT = 9, 36
_WIDE = 100
_HEADINGS = ("loss", "held-out", "accuracy (95 %)", "margin", "margin/token", "KL", "time")
_NARROW_HEADINGS = tuple(heading for heading in _HEADINGS if heading != "margin")


class ComparisonView:
    """Rich renderable of a comparison, as wide as the console."""

    def __init__(self, runs: Sequence[ComparedRun]) -> None:
        self._runs = runs
        self._styles = [STYLES[i % len(STYLES)] for i in range(len(runs))]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw names, differences, charts, metrics and notes."""
        yield from self._legend()
        yield Text()
        if differences(self._runs):
            yield self._differences()
        else:
            yield Text("profiles, files, devices and versions are identical", style="dim")
        yield Text()
        yield from self._charts(options.max_width, options.height or console.height)
        yield self._figures(is_wide=options.max_width >= _WIDE)
        for note in notes(self._runs):
            yield Text.assemble(("note: ", "bold yellow"), note)

    def _legend(self) -> Iterator[Text]:
        for run, style in zip(self._runs, self._styles, strict=True):
            model = run.model or "no plan"
            yield Text.assemble(
                (run.letter, f"bold {style}"),
                f" {one_line(run.name)}",
                (f"  {run.summary.state}, {one_line(model)}", "dim"),
                overflow="fold",
            )

    def _differences(self) -> Table:
        """Return a table with one key per row: its values, each with the letters of its runs."""
        table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
        table.add_column(style="dim", no_wrap=True)
        table.add_column(overflow="fold")
        letters = [run.letter for run in self._runs]
        style_of = dict(zip(letters, self._styles, strict=True))
        for difference in differences(self._runs):
            values = []
            for value, group in difference.groups(letters).items():
                names = Text(" ").join(Text(letter, f"bold {style_of[letter]}") for letter in group)
                values.append(Text.assemble(names, f" {one_line(value)}"))
            table.add_row(one_line(difference.key), Text("  ").join(values))
        return table

    def _charts(self, width: int, height: int) -> Block:
        rows = 2 if height >= _TWO_ROWS_HEIGHT else 1
        columns = min(_MOST_BESIDE, max(1, width // _LEAST_CHART_WIDTH))
        chart_height = max(_LEAST_CHART_HEIGHT, height // (rows + 2))
        plots = (loss_plot(self._runs[0].view.plan), *SMALL)
        drawn = [plot for plot in plots if self._curves(plot)[1]]
        block: Block = []
        for row in range(rows):
            line: Block | None = None
            for i, plot in enumerate(drawn[row * columns : (row + 1) * columns]):
                # Differences of rounded positions: the widths add up to exactly `width`.
                chart_width = width * (i + 1) // columns - width * i // columns
                chart = self._chart(plot, chart_width, chart_height)
                line = chart if line is None else beside(line, chart)
            block += line or []
        return block

    def _chart(self, plot: Plot, width: int, height: int) -> Block:
        where, curves = self._curves(plot)
        lines = draw(
            curves,
            width - 4,
            height - 2,
            x_end=max(run.view.step for run in self._runs),
            x_name=step_name(*(run.plan for run in self._runs)),
            level=plot.level,
            least_span=plot.least_span,
        )
        return draw_frame(f"{plot.title}, {where}" if where else plot.title, lines, width, height)

    def _curves(self, plot: Plot) -> tuple[str, list[Curve]]:
        """Return one curve per run, over the held-out pairs if any run has them."""
        trace = plot.traces[-1]
        if trace.held_out and not any(trace.metric in run.view.evaluated for run in self._runs):
            trace = replace(trace, held_out=False, name="train")
        curves = []
        for run, style in zip(self._runs, self._styles, strict=True):
            series = (run.view.evaluated if trace.held_out else run.view.trained).get(trace.metric)
            points = series.points if series else []
            if trace.is_noisy and len(points) > FEW_POINTS:
                points = smooth(points)
            if points:
                curves.append(Curve(points, style, Mark.LINE, run.letter))
        return trace.name, curves

    def _figures(self, *, is_wide: bool) -> Table:
        """Return a table of the runs: loss over the last steps, the rest over held-out pairs."""
        padding = (0, 2 if is_wide else 1, 0, 0)
        table = Table(box=None, pad_edge=False, header_style="dim", padding=padding)
        table.add_column("", no_wrap=True)
        steps = f"{step_name(*(run.plan for run in self._runs))}s"
        table.add_column(steps, justify="right", no_wrap=True)
        for heading in _HEADINGS if is_wide else _NARROW_HEADINGS:
            table.add_column(heading, justify="right", no_wrap=True)
        for run, style in zip(self._runs, self._styles, strict=True):
            held_out = run.view.held_out.metrics if run.view.held_out else {}
            accuracy = MISSING
            if run.accuracy:
                share, (low, high) = run.accuracy
                accuracy = format_with_interval(share, low, high)
            cells = (
                format_progress(run.summary.step, run.summary.total_steps),
                format_number(run.view.recent_mean("loss"), ".4f"),
                format_number(held_out.get("loss"), ".4f"),
                accuracy,
                *([format_number(held_out.get("rewards/margins"), "+.3g")] if is_wide else []),
                format_number(held_out.get("margin_per_token"), "+.3g"),
                format_number(held_out.get("kl"), ".3g"),
                format_duration(run.summary.seconds),
            )
            table.add_row(Text(run.letter, f"bold {style}"), *cells)
        return table
