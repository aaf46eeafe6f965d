"""`dpo compare`: several runs side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dpo_cli.commands.options import JsonOption, RunsArgument, RunsDirOption
from dpo_cli.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dpo_cli.run.store import RunDirectory
    from dpo_cli.ui.comparison import Contender

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
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
    import sys
    from json import dumps

    from rich.console import Console

    from dpo_cli.ui.compare import ComparedRuns
    from dpo_cli.ui.comparison import as_json
    from dpo_cli.ui.live import terminal_size

    runs = find_contenders(run_names, runs_dir)
    if len(runs) < 2:
        raise UsageError("one run has nothing to be compared with", "name a second: dpo runs")
    if json:
        typer.echo(dumps(as_json(runs), indent=2, ensure_ascii=False))
        return
    usual = terminal_size() if sys.stdout.isatty() else (_WIDTH, _HEIGHT)
    console = Console(
        width=width or usual[0],
        height=height or usual[1],
        highlight=False,
        markup=False,
        emoji=False,
    )
    console.print(ComparedRuns(runs))


def find_contenders(names: Sequence[str], runs_dir: Path | None) -> list[Contender]:
    """The runs that a user names, each once, with a letter in the order of their naming.

    Raises:
        UsageError: one is not there, or there are too many.
    """
    from dpo_cli.run.store import find_run, runs_root

    root = runs_root(runs_dir)
    runs = {run.path.resolve(): run for run in (find_run(root, name) for name in names)}
    if len(runs) > len(_LETTERS):
        raise UsageError(f"{len(runs)} runs are too many", f"name up to {len(_LETTERS)}")
    return [_look_at(run, letter) for run, letter in zip(runs.values(), _LETTERS, strict=False)]


def _look_at(run: RunDirectory, letter: str) -> Contender:
    from dpo_cli.run.events import history
    from dpo_cli.run.summary import summarize
    from dpo_cli.ui.comparison import Contender
    from dpo_cli.ui.view import RunView

    view = RunView.of(history(run.events_path))
    settings = view.plan.get("settings") if view.plan else None
    return Contender(letter, summarize(run), view, settings or {})
