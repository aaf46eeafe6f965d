"""`dpo runs`: list the runs and their state."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer
from rich.table import Table

from dpo_cli.commands.console import plain_console, print_json
from dpo_cli.commands.options import RunsDirOption
from dpo_cli.formatting import format_duration, format_progress, format_size
from dpo_cli.run.directory import runs_root
from dpo_cli.run.lookup import list_runs
from dpo_cli.run.summary import RunSummary, summarize
from dpo_cli.shell import dpo_command
from dpo_cli.ui.terminal.console import SafeConsole


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
        plain_console().print(f"there are no runs in {root}")
        plain_console().print(f"start one: {dpo_command('train', 'PROFILE')}")
    else:
        console = SafeConsole(highlight=False, markup=False, emoji=False)
        if not console.is_terminal:
            console.width = 200  # do not wrap lines for a program or file
        console.print(_table(summaries))


def _table(summaries: list[RunSummary]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    table.add_column("run", overflow="fold")
    table.add_column("state", no_wrap=True)
    for heading in ("steps", "loss", "held-out acc", "best at", "time", "size"):
        table.add_column(heading, justify="right", no_wrap=True)
    for each in summaries:
        table.add_row(
            each.name,
            f"{each.state} ({note})" if (note := each.holder or each.problem) else each.state,
            format_progress(each.step, each.total_steps),
            "-" if each.loss is None else f"{each.loss:.4f}",
            "-" if each.held_out_accuracy is None else f"{each.held_out_accuracy:.2f}",
            "-" if each.best_step is None else f"{each.best_step:,}",
            format_duration(each.seconds),
            format_size(each.size_bytes),
        )
    return table
