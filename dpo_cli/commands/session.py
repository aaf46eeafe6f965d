"""What `train` and `resume` share: a worker on a run that is locked, and its screen."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import typer
from rich.console import Console

if TYPE_CHECKING:
    from dpo_cli.run.store import RunDirectory


def plain_console() -> Console:
    """Standard output, for text that is shown as it is."""
    return Console(highlight=False, markup=False, emoji=False, soft_wrap=True)


def run_worker(
    run: RunDirectory,
    lock: int,
    *,
    changes: Sequence[str] = (),
    undo: Callable[[], None],
    quiet: bool,
    detach: bool,
) -> None:
    """Train until the worker ends; detached, return at once and train in another process.

    Raises:
        typer.Exit: with the worker's exit code.
        DpoError: the run failed.
    """
    from dpo_cli.run import launch
    from dpo_cli.ui.report import PlainReport

    console, name = plain_console(), run.designation
    if detach and (pid := launch.detach(run, lock)):
        console.print(f"{name} is training in the background, as process {pid}")
        console.print(f"stop it: dpo stop {name}")
        console.print(f"go on:   dpo resume {name}")
        return
    if not quiet:
        with contextlib.suppress(OSError, SystemExit):  # a closed pipe does not concern the run
            console.print(f"run {name}: Ctrl-C saves and stops")
    report = PlainReport(console, name, run.path, quiet=quiet)
    raise typer.Exit(
        launch.supervise(run, lock, launch.worker_argv(run, changes), report, undo=undo)
    )
