"""The runs that `compare`, `plot` and `report` are asked about, read from their streams."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dpo_cli.errors import UsageError
from dpo_cli.run.directory import RunDirectory, runs_root
from dpo_cli.run.events import Event, history
from dpo_cli.run.lookup import find_run
from dpo_cli.run.summary import summarize
from dpo_cli.run.view import RunView
from dpo_cli.ui.comparison import ComparedRun

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def named_runs(names: Sequence[str], runs_dir: Path | None) -> dict[str, RunDirectory]:
    """The runs that a user names, each once, by letter in the order of their naming.

    Raises:
        UsageError: one is not there, or there are too many.
    """
    root = runs_root(runs_dir)
    runs = {run.path.resolve(): run for run in (find_run(root, name) for name in names)}
    if len(runs) > len(_LETTERS):
        raise UsageError(f"{len(runs)} runs are too many", f"name up to {len(_LETTERS)}")
    return dict(zip(_LETTERS, runs.values(), strict=False))


def find_contenders(names: Sequence[str], runs_dir: Path | None) -> list[ComparedRun]:
    """What the runs that a user names came to; see `named_runs`."""
    return [
        contender(letter, run, history(run.events_path))
        for letter, run in named_runs(names, runs_dir).items()
    ]


def contender(letter: str, run: RunDirectory, events: Sequence[Event]) -> ComparedRun:
    """A run by the events of its stream."""
    view = RunView.of(events)
    return ComparedRun(letter, summarize(run), view, view.plan.settings if view.plan else {})
