"""Runs that the user names for `compare`, `plot` and `report`, read from their events."""

from __future__ import annotations

import string
from collections.abc import Iterable, Sequence
from pathlib import Path

from dpo_cli.errors import UsageError
from dpo_cli.run.directory import RunDirectory, runs_root
from dpo_cli.run.events import Event
from dpo_cli.run.held_out_scores import read_ends
from dpo_cli.run.lookup import find_run
from dpo_cli.run.summary import summarize
from dpo_cli.run.thinning import ThinnedHistory
from dpo_cli.run.view import RunView
from dpo_cli.ui.comparison import ComparedRun

_LETTERS = string.ascii_uppercase


def named_runs(names: Sequence[str], runs_dir: Path | None) -> dict[str, RunDirectory]:
    """Return the named runs by letter, each once, in the order of the names.

    Raises:
        UsageError: a run does not exist, or there are more runs than letters.
    """
    root = runs_root(runs_dir)
    runs = {run.path.resolve(): run for run in (find_run(root, name) for name in names)}
    if len(runs) > len(_LETTERS):
        raise UsageError(f"{len(runs)} runs are too many", f"Name up to {len(_LETTERS)} runs.")
    return dict(zip(_LETTERS, runs.values(), strict=False))


def read_runs(names: Sequence[str], runs_dir: Path | None) -> list[ComparedRun]:
    """Read the named runs; see `named_runs`."""
    return [
        compared_run(letter, run, ThinnedHistory(run.events_path))
        for letter, run in named_runs(names, runs_dir).items()
    ]


def compared_run(letter: str, run: RunDirectory, events: Iterable[Event]) -> ComparedRun:
    """Summarize a run and its events for a comparison."""
    view = RunView.of(events)
    settings = view.plan.settings if view.plan else {}
    scores, start_scores = read_ends(run.held_out_path, view)
    return ComparedRun(letter, summarize(run), view, settings, scores, start_scores)
