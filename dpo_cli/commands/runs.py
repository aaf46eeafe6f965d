"""`dpo runs`: list the runs and their state."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from dpo_cli.commands.console import print_json
from dpo_cli.commands.options import RunsDirOption
from dpo_cli.formatting import format_duration, format_progress, format_size
from dpo_cli.run.directory import runs_root
from dpo_cli.run.lookup import list_runs
from dpo_cli.run.summary import RunSummary, summarize
from dpo_cli.shell import dpo_command
from dpo_cli.ui.terminal.console import SafeConsole, line_console

_PIPE_WIDTH = 200
_COLUMNS: Mapping[str, Callable[[RunSummary], str]] = {
    "steps": lambda run: format_progress(run.step, run.total_steps),
    "loss": lambda run: "-" if run.loss is None else f"{run.loss:.4f}",
    "held-out acc": lambda run: (
        "-" if run.held_out_accuracy is None else f"{run.held_out_accuracy:.2f}"
    ),
    "best at": lambda run: "-" if run.best_step is None else f"{run.best_step:,}",
    "time": lambda run: format_duration(run.seconds),
    "size": lambda run: format_size(run.size_bytes),
}
"""Text of each column of a run."""
_DROPPED = ("best at", "size", "time", "held-out acc", "loss", "steps")
"""Columns in the order in which a narrow terminal leaves them out."""


def runs(
    runs_dir: RunsDirOption = None,
    json: Annotated[bool, typer.Option("--json", help="Print a JSON array.")] = False,
) -> None:
    """List all runs, the newest first, with state, steps, loss, time and size.

    Example: `dpo runs --json`
    """
    root = runs_root(runs_dir)
    summaries = [summarize(run) for run in list_runs(root)]
    if json:
        print_json([dataclasses.asdict(summary) for summary in summaries])
    elif not summaries:
        line_console().print(f"there are no runs in {root}")
        line_console().print(f"start one: {dpo_command('train', 'PROFILE')}")
    else:
        console = SafeConsole(highlight=False, markup=False, emoji=False)
        if not console.is_terminal:
            console.width = _PIPE_WIDTH  # do not wrap lines for a program or file
        table = _fitting_table(console, summaries)
        # A line that is wider than the terminal is wrapped by the terminal, which copies it whole.
        console.width = max(console.width, _width(console, table))
        console.print(table)


def _width(console: Console, table: Table) -> int:
    unlimited = console.options.update(max_width=_PIPE_WIDTH)
    return console.measure(table, options=unlimited).maximum


def _fitting_table(console: Console, summaries: list[RunSummary]) -> Table:
    """Return the table with as many columns as fit; names of runs are never wrapped."""
    columns = list(_COLUMNS)
    with_notes = True
    while True:
        table = _table(summaries, columns, with_notes=with_notes)
        if _width(console, table) <= console.width or not columns:
            return table
        if with_notes:
            with_notes = False
        else:
            columns.remove(min(columns, key=_DROPPED.index))


def _table(summaries: list[RunSummary], columns: Sequence[str], *, with_notes: bool) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    table.add_column("run", no_wrap=True)
    table.add_column("state", no_wrap=True)
    for heading in columns:
        table.add_column(heading, justify="right", no_wrap=True)
    for each in summaries:
        note = (each.holder or each.problem) if with_notes else None
        state = f"{each.state} ({note})" if note else str(each.state)
        table.add_row(each.name, state, *(_COLUMNS[heading](each) for heading in columns))
    return table
