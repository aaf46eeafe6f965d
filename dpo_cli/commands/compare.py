"""`dpo compare`: show runs side by side."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from dpo_cli.commands.compared_runs import read_runs
from dpo_cli.commands.console import print_json
from dpo_cli.commands.options import (
    HeightOption,
    JsonOption,
    RunsArgument,
    RunsDirOption,
    WidthOption,
)
from dpo_cli.errors import UsageError
from dpo_cli.ui.comparison import ComparedRun, as_json
from dpo_cli.ui.terminal.compare import ComparisonView
from dpo_cli.ui.terminal.console import SafeConsole
from dpo_cli.ui.terminal.panel import terminal_size

_WIDTH, _HEIGHT = 120, 40


def compare(
    run_names: RunsArgument,
    json: JsonOption = False,
    width: WidthOption = None,
    height: HeightOption = None,
    runs_dir: RunsDirOption = None,
) -> None:
    """Compare runs: settings that differ, curves in one chart, metrics side by side.

    Accuracies have 95 % intervals. A note lists runs that the held-out pairs cannot distinguish.

    Example: `dpo compare first second`
    """
    runs = read_runs(run_names, runs_dir)
    if len(runs) < 2:
        raise UsageError("dpo compare needs two runs", "Name a second run; dpo runs lists them.")
    if json:
        print_json(as_json(runs))
        return
    print_comparison(runs, width, height)


def print_comparison(
    runs: Sequence[ComparedRun], width: int | None = None, height: int | None = None
) -> None:
    """Print runs side by side, in the size of the terminal where none is given."""
    usual = terminal_size() if sys.stdout.isatty() else (_WIDTH, _HEIGHT)
    console = SafeConsole(
        width=width or usual[0],
        height=height or usual[1],
        highlight=False,
        markup=False,
        emoji=False,
    )
    console.print(ComparisonView(runs))
