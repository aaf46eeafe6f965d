"""`dpo clean`: remove files that runs no longer need."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from dpo_cli.commands.complete import complete_run
from dpo_cli.commands.console import print_json
from dpo_cli.commands.options import DryRunOption, JsonOption, RunsDirOption
from dpo_cli.errors import DpoError, ExitCode, first_line
from dpo_cli.formatting import format_size
from dpo_cli.run.cleaning import Cleaning, free, look_through
from dpo_cli.run.directory import RunDirectory, runs_root
from dpo_cli.run.lookup import find_run, find_runs
from dpo_cli.run.summary import summarize
from dpo_cli.run.view import RunState
from dpo_cli.shell import dpo_command
from dpo_cli.ui.terminal.console import line_console


def clean(
    run_names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RUN...",
            help="Clean these runs, even if they are not completed. Default: all completed runs.",
            show_default=False,
            autocompletion=complete_run,
        ),
    ] = None,
    dry_run: DryRunOption = False,
    json: JsonOption = False,
    runs_dir: RunsDirOption = None,
) -> None:
    """Remove files that runs no longer need, each with the reason.

    Removes checkpoints except the newest verified and the best, dumps of non-finite steps, and
    temporary files of killed workers. Runs that are not completed are cleaned only if you name
    them; runs that train are never touched.

    Example: `dpo clean --dry-run`
    """
    root = runs_root(runs_dir)
    runs = [find_run(root, name) for name in run_names] if run_names else find_runs(root)
    freed: list[Cleaning] = []
    failed: list[Path] = []
    kept: list[tuple[str, str]] = []
    for run in {run.path.resolve(): run for run in runs}.values():
        try:
            cleaning, remarks, stuck = _clean(run, is_named=bool(run_names), dry_run=dry_run)
        except (OSError, DpoError) as error:
            if run_names:
                raise
            # Continue with the other runs if one cannot be read.
            cleaning, remarks, stuck = None, [f"cannot be cleaned: {first_line(error)}"], []
        kept += [(run.name, remark) for remark in remarks]
        failed += stuck
        if cleaning is not None:
            freed.append(cleaning)

    total = sum(cleaning.size_bytes for cleaning in freed)
    if json:
        facts = {
            "dry_run": dry_run,
            "freed_bytes": total,
            "freed": [item for cleaning in freed for item in _as_json(cleaning)],
            "kept": [{"run": name, "reason": reason} for name, reason in kept],
            "failed": [str(path) for path in failed],
        }
        print_json(facts)
        if failed:
            raise typer.Exit(ExitCode.FAILED)
        return
    console = line_console()
    for cleaning in freed:
        console.print(f"{cleaning.run.designation}: {format_size(cleaning.size_bytes)}")
        for item in cleaning.items:
            place = item.path.relative_to(cleaning.run.path)
            console.print(f"  {format_size(item.size_bytes):>9}  {place}: {item.reason}")
    for name, reason in kept:
        console.print(f"kept: {name}: {reason}")
    console.print(f"{'this would free' if dry_run else 'freed'} {format_size(total)}")
    if failed:
        raise DpoError("some files could not be removed", details=list(map(str, failed)))


def _clean(
    run: RunDirectory, *, is_named: bool, dry_run: bool
) -> tuple[Cleaning | None, Sequence[str], list[Path]]:
    """Clean one run.

    Args:
        run: the run.
        is_named: the user named this run, so it is cleaned even if it is not completed.
        dry_run: remove nothing.

    Returns:
        What was removed, or with `dry_run` would be, or None; the reasons for what is kept; and the
        paths that could not be removed.

    Raises:
        OSError, DpoError: the run cannot be read or written.
    """
    if (holder := run.holder()) is not None:
        return None, [f"is trained by {holder}"], []
    cleaning = look_through(run)
    if not cleaning.items:
        is_counted = is_named or run.is_completed
        return None, cleaning.remarks if is_counted else [], []
    if not is_named and not run.is_completed:
        state = summarize(run).state
        if state is RunState.COMPLETED:
            return None, [], []
        size, command = format_size(cleaning.size_bytes), dpo_command("clean", run.designation)
        return None, [f"is not completed ({state}); free {size} with: {command}"], []
    remarks, stuck = cleaning.remarks, list[Path]()
    if not dry_run:
        cleaning, stuck = free(cleaning)
    return (cleaning if cleaning.items else None), remarks, stuck


def _as_json(cleaning: Cleaning) -> list[dict[str, Any]]:
    return [
        {
            "run": cleaning.run.name,
            "path": str(item.path),
            "size_bytes": item.size_bytes,
            "reason": item.reason,
        }
        for item in cleaning.items
    ]
