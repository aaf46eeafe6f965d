"""`dpo compare`: several runs side by side."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from json import dumps
from typing import Annotated

import typer
from rich.console import Console

from dpo_cli.commands.compared_runs import read_runs
from dpo_cli.commands.options import JsonOption, RunsArgument, RunsDirOption
from dpo_cli.errors import UsageError
from dpo_cli.ui.comparison import ComparedRun, as_json
from dpo_cli.ui.terminal.compare import ComparisonView
from dpo_cli.ui.terminal.panel import terminal_size

_WIDTH, _HEIGHT = 120, 40


def compare(
    run_names: RunsArgument,
    json: JsonOption = False,
    width: Annotated[
        int | None, typer.Option(min=40, max=1000, metavar="COLUMNS", show_default=False)
    ] = None,
    height: Annotated[
        int | None, typer.Option(min=10, max=1000, metavar="LINES", show_default=False)
    ] = None,
    runs_dir: RunsDirOption = None,
) -> None:
    """Compare runs: in what they differ, their curves in one chart, their figures side by side.

    What a few held-out pairs cannot tell apart is said, with 95 % intervals.

    Example: `dpo compare first second`
    """
    runs = read_runs(run_names, runs_dir)
    if len(runs) < 2:
        raise UsageError("one run has nothing to be compared with", "name a second: dpo runs")
    if json:
        typer.echo(dumps(as_json(runs), indent=2, ensure_ascii=False))
        return
    print_comparison(runs, width, height)


def print_comparison(
    runs: Sequence[ComparedRun], width: int | None = None, height: int | None = None
) -> None:
    """Print runs side by side, in the size of the terminal where none is given."""
    usual = terminal_size() if sys.stdout.isatty() else (_WIDTH, _HEIGHT)
    console = Console(
        width=width or usual[0],
        height=height or usual[1],
        highlight=False,
        markup=False,
        emoji=False,
    )
    console.print(ComparisonView(runs))
