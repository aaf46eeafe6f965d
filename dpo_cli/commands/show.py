"""`dpo show`: a picture of a run at any of its moments."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from dpo_cli.commands.console import plain_console, write_output
from dpo_cli.commands.options import RunArgument, RunsDirOption
from dpo_cli.errors import DpoError
from dpo_cli.run.directory import RunDirectory, runs_root
from dpo_cli.run.events import Event, history
from dpo_cli.run.lookup import find_run
from dpo_cli.run.view import RunView
from dpo_cli.ui.terminal.capture import captured_file, recording_console
from dpo_cli.ui.terminal.dashboard import Dashboard
from dpo_cli.ui.terminal.panel import disk_usage, terminal_size
from dpo_cli.ui.terminal.plain import sample_lines

_WIDTH, _HEIGHT = 100, 30


def show(
    run_name: RunArgument = None,
    svg: Annotated[
        Path | None,
        typer.Option(
            "--svg",
            metavar="FILE",
            help="Write an SVG picture there; plain text, if the name ends in .txt.",
            show_default=False,
        ),
    ] = None,
    at: Annotated[
        int | None,
        typer.Option(
            min=0, metavar="STEP", help="As it stood after this step.", show_default=False
        ),
    ] = None,
    width: Annotated[
        int | None, typer.Option(min=40, max=1000, metavar="COLUMNS", show_default=False)
    ] = None,
    height: Annotated[
        int | None, typer.Option(min=10, max=1000, metavar="LINES", show_default=False)
    ] = None,
    samples: Annotated[
        bool,
        typer.Option("--samples", help="Print what policy and reference answered, not the panel."),
    ] = False,
    runs_dir: RunsDirOption = None,
) -> None:
    """Show the panel of a run, as it is or as it was, and leave it at that.

    Without RUN it is the newest. As large as the terminal, else 100 x 30.

    Example: `dpo show dense --at 400 --svg panel.svg`
    """
    run = find_run(runs_root(runs_dir), run_name)
    dashboard = picture(run, at)
    if samples:
        _print_samples(run, dashboard)
        return
    if svg is None:
        print_picture(dashboard, width, height)
        return
    console = recording_console(width or _WIDTH, height or _HEIGHT)
    console.print(dashboard, end="")
    write_output(svg, captured_file(console, svg.name, f"dpo: {run.name}"))
    typer.echo(f"wrote {svg}")


def _print_samples(run: RunDirectory, dashboard: Dashboard) -> None:
    """What policy and reference answered last.

    Raises:
        DpoError: they were not asked.
    """
    sampled = dashboard.view.sampled
    if sampled is None:
        raise DpoError(
            f"{run.name} has no samples", "eval.num_samples = 3 has three prompts answered"
        )
    console = plain_console()
    console.print(f"after step {sampled.step}")
    for line in sample_lines(sampled):
        console.print(line)


def picture(run: RunDirectory, at: int | None = None) -> Dashboard:
    """The panel of `run` now, or as it stood after step `at`."""
    is_held = run.holder() is not None
    view = RunView.of(_until(history(run.events_path), at))
    is_now = at is None and is_held
    return Dashboard(
        view,
        run.designation,
        run.path,
        now=time.time() if is_now else view.time,
        is_alive=at is not None or is_held,
        disk=disk_usage(run) if at is None else None,
    )


def print_picture(
    dashboard: Dashboard, width: int | None = None, height: int | None = None
) -> None:
    """Print the panel as ordinary lines, so large that the terminal's prompt fits below it."""
    usual_width, usual_height = _WIDTH, _HEIGHT
    if sys.stdout.isatty():
        usual_width, usual_height = terminal_size()
        usual_height -= 1
    console = Console(width=width or usual_width, height=height or usual_height)
    console.print(dashboard, end="")


def _until(events: Iterable[Event], at: int | None) -> Iterator[Event]:
    """The events up to the one that ends step `at`, and what belongs to it."""
    for event in events:
        if at is not None and getattr(event, "step", 0) > at:
            return
        yield event
