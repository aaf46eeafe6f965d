"""`dpo watch`: show a run live, or replay it."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from dpo_cli.commands.options import PlainOption, RunArgument, RunsDirOption
from dpo_cli.run.directory import RunDirectory, runs_root
from dpo_cli.run.events import EventReader, history
from dpo_cli.run.lookup import find_run
from dpo_cli.run.thinning import ThinnedReader
from dpo_cli.ui.snapshot import print_panel, read_panel
from dpo_cli.ui.terminal.console import line_console
from dpo_cli.ui.terminal.panel import REPLAY_KEYS, Panel, has_terminal
from dpo_cli.ui.terminal.plain import PlainReport
from dpo_cli.ui.terminal.replay import Replay

_POLL_SECONDS = 0.25


def watch(
    run_name: RunArgument = None,
    speed: Annotated[
        float | None,
        typer.Option(
            min=0.01,
            metavar="FACTOR",
            help="Replay a finished run this many times as fast.",
            show_default=False,
        ),
    ] = None,
    runs_dir: RunsDirOption = None,
    plain: PlainOption = False,
) -> None:
    """Watch a run from any terminal, with the panel and keys of `dpo train`.

    Without RUN, watch the newest run that is training, or else the newest. For a finished run,
    show the last panel, or replay the run with --speed. Leave with d or Ctrl-C; the run continues.

    Example: `dpo watch dense --speed 20`
    """
    run = find_run(runs_root(runs_dir), run_name, prefer=lambda run: run.holder() is not None)
    console = line_console()
    if plain or not has_terminal(console):
        _print_lines(run)
        return
    if run.holder() is not None:
        panel = Panel(run, console, ThinnedReader(run.events_path).read_new)
        is_over = panel.show(lambda: run.holder() is None)
    elif speed is not None:
        replay = Replay(list(history(run.events_path)), speed)
        panel = Panel(run, console, replay.read_new, clock=replay.now, keys=REPLAY_KEYS)
        is_over = panel.show(replay.is_over)
    else:
        is_over = True
    if not is_over:
        return
    if run.profile_path.exists():
        print_panel(read_panel(run))
    else:
        console.print(f"{run.designation} was removed: it had not started to train")


def _print_lines(run: RunDirectory) -> None:
    """Print the lines of `dpo train --plain` until no process trains the run."""
    report = PlainReport(line_console(), run.designation, run.path)
    reader = EventReader(run.events_path)
    while True:
        is_over = run.holder() is None  # read before the events, so that the last are printed
        for event in reader.read_new():
            report(event)
        if is_over:
            return
        time.sleep(_POLL_SECONDS)
