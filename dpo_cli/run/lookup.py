"""Lookup of runs by the name that a user types."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable
from pathlib import Path

from dpo_cli.errors import UsageError
from dpo_cli.files import expanded
from dpo_cli.run.directory import RunDirectory
from dpo_cli.run.disk import unreadable


def find_runs(root: Path) -> list[RunDirectory]:
    """List the readable runs under `root`, newest first; links are ignored.

    `list_runs` also lists runs that this user may not read.
    """
    return [run for run in list_runs(root) if _is_run(run)]


def list_runs(root: Path) -> list[RunDirectory]:
    """List the runs under `root`, newest first, with unreadable directories named like runs."""
    if not root.is_dir():
        return []
    found = [RunDirectory(path) for path in root.iterdir() if not path.is_symlink()]
    runs = [run for run in found if _is_run(run) or (run.created and _read_error(run))]
    return sorted(runs, key=lambda run: (run.created, run.name), reverse=True)


def _is_run(run: RunDirectory) -> bool:
    try:
        return run.profile_path.is_file()
    except (OSError, ValueError):  # ValueError: a name that no path can have
        return False


def _read_error(run: RunDirectory) -> OSError | None:
    """Return the error that prevents a look at the run's profile; None if there is none."""
    try:
        run.profile_path.stat()
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    except OSError as error:
        return error
    return None


def find_run(
    root: Path,
    query: str | None,
    *,
    prefer: Callable[[RunDirectory], bool] = lambda run: True,
) -> RunDirectory:
    """Find one run by path, directory name, profile name (the newest) or unique prefix.

    Args:
        root: directory of the runs.
        query: what the user typed; None for the newest run for which `prefer` is True, or the
            newest of all.
        prefer: see `query`.

    Raises:
        UsageError: no run matches, or several do; the message lists names.
        OtherVersionError: another version of dpo wrote the run.
    """
    run = _find(root, query, prefer)
    run.require_this_version()
    return run


def _find(root: Path, query: str | None, prefer: Callable[[RunDirectory], bool]) -> RunDirectory:
    if query is not None and os.sep in query:
        run = RunDirectory(expanded(query))
        if error := _read_error(run):
            raise unreadable(run.path, error)
        if not _is_run(run):
            raise UsageError(f"{query} is not a run: it has no profile.toml")
        return run
    runs = find_runs(root)
    if not runs:
        raise UsageError(f"there are no runs in {root}", "Start one: dpo train PROFILE")
    if query is None:
        return next((run for run in runs if prefer(run)), runs[0])
    for run in runs:
        if run.name == query:
            return run
    for run in runs:
        if run.profile_name == query:
            return run
    matches = [run.name for run in runs if run.name.startswith(query)]
    if len(matches) == 1:
        return RunDirectory(root / matches[0])
    if matches:
        raise UsageError(f"{query!r} could be several runs", "Type more of the name.", matches)
    for run in list_runs(root):
        if query in (run.name, run.profile_name) and (error := _read_error(run)):
            raise unreadable(run.path, error)
    names = [run.name for run in runs] + [run.profile_name for run in runs]
    near = difflib.get_close_matches(query, names, n=3, cutoff=0.4)
    raise UsageError(
        f"there is no run {query!r} in {root}",
        f"Did you mean {' or '.join(dict.fromkeys(near))}?" if near else "",
        () if near else [run.name for run in runs[:5]],
    )
