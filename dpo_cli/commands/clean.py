"""`dpo clean`: space that runs take and do not need."""

from __future__ import annotations

from json import dumps
from pathlib import Path
from typing import Annotated, Any

import typer

from dpo_cli.commands.complete import complete_run
from dpo_cli.commands.console import plain_console
from dpo_cli.commands.options import DryRunOption, JsonOption, RunsDirOption
from dpo_cli.errors import DpoError, ExitCode
from dpo_cli.formatting import format_size
from dpo_cli.run.cleaning import Cleaning, free, look_through
from dpo_cli.run.directory import runs_root
from dpo_cli.run.lookup import find_run, find_runs
from dpo_cli.run.summary import summarize
from dpo_cli.run.view import RunState


def clean(
    run_names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RUN...]",
            help="Free these, also if they are not completed; else all completed runs.",
            show_default=False,
            autocompletion=complete_run,
        ),
    ] = None,
    dry_run: DryRunOption = False,
    json: JsonOption = False,
    runs_dir: RunsDirOption = None,
) -> None:
    """Free what runs no longer need, and say of each thing why.

    Saved states but the newest (verified first) and the best, what was kept of updates that were
    not finite, and what killed workers left. Runs that are not completed are touched only if they
    are named, and those that train never.

    Example: `dpo clean --dry-run`
    """
    root = runs_root(runs_dir)
    runs = [find_run(root, name) for name in run_names] if run_names else find_runs(root)
    freed: list[Cleaning] = []
    failed: list[Path] = []
    kept: list[tuple[str, str]] = []
    for run in {run.path.resolve(): run for run in runs}.values():
        if (holder := run.holder()) is not None:
            kept.append((run.name, f"is being trained by {holder}"))
            continue
        cleaning = look_through(run)
        if not run_names and not run.is_completed:
            state = summarize(run).state
            if cleaning.items and state is not RunState.COMPLETED:
                would = (
                    f"{format_size(cleaning.size_bytes)} would go with: dpo clean {run.designation}"
                )
                kept.append((run.name, f"is not completed ({state}); {would}"))
            continue
        kept += [(run.name, remark) for remark in cleaning.remarks]
        if cleaning.items and not dry_run:
            cleaning, stuck = free(cleaning)
            failed += stuck
        if cleaning.items:
            freed.append(cleaning)

    total = sum(cleaning.size_bytes for cleaning in freed)
    if json:
        told = {
            "dry_run": dry_run,
            "freed_bytes": total,
            "freed": [item for cleaning in freed for item in _as_json(cleaning)],
            "kept": [{"run": name, "reason": reason} for name, reason in kept],
            "failed": [str(path) for path in failed],
        }
        typer.echo(dumps(told, indent=2, ensure_ascii=False))
        if failed:
            raise typer.Exit(ExitCode.FAILED)
        return
    console = plain_console()
    for cleaning in freed:
        console.print(f"{cleaning.run.designation}: {format_size(cleaning.size_bytes)}")
        for item in cleaning.items:
            place = item.path.relative_to(cleaning.run.path)
            console.print(f"  {format_size(item.size_bytes):>9}  {place}: {item.reason}")
    for name, reason in kept:
        console.print(f"kept: {name}: {reason}")
    console.print(f"{'this would free' if dry_run else 'freed'} {format_size(total)}")
    if failed:
        raise DpoError("not everything could be removed", details=list(map(str, failed)))


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
