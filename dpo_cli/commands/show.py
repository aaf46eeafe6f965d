"""`dpo show`: print the panel of a run, now or after any step."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from dpo_cli.commands.console import write_output
from dpo_cli.commands.options import HeightOption, RunArgument, RunsDirOption, WidthOption
from dpo_cli.errors import DpoError
from dpo_cli.run.directory import RunDirectory, runs_root
from dpo_cli.run.lookup import find_run
from dpo_cli.shell import dpo_command
from dpo_cli.ui.snapshot import HEIGHT, WIDTH, print_panel, read_panel
from dpo_cli.ui.terminal.capture import captured_file, recording_console
from dpo_cli.ui.terminal.console import echo, line_console
from dpo_cli.ui.terminal.dashboard import Dashboard
from dpo_cli.ui.terminal.panel import terminal_size
from dpo_cli.ui.terminal.plain import sample_texts
from dpo_cli.ui.terminal.wrapping import hanging


def show(
    run_name: RunArgument = None,
    svg: Annotated[
        Path | None,
        typer.Option(
            "--svg",
            metavar="FILE",
            help="Write the panel as SVG, or as plain text if the name ends in .txt.",
            show_default=False,
        ),
    ] = None,
    at: Annotated[
        int | None,
        typer.Option(
            min=0, metavar="STEP", help="Show the panel after this step.", show_default=False
        ),
    ] = None,
    width: WidthOption = None,
    height: HeightOption = None,
    samples: Annotated[
        bool,
        typer.Option("--samples", help="Print the last sampled answers instead of the panel."),
    ] = False,
    runs_dir: RunsDirOption = None,
) -> None:
    """Print the panel of a run, as it is now or as it was after a step.

    Without RUN, show the newest run. The panel has the size of the terminal, else 100 x 30.

    Example: `dpo show dense --at 400 --svg panel.svg`
    """
    run = find_run(runs_root(runs_dir), run_name)
    dashboard = read_panel(run, at)
    if samples:
        _print_samples(run, dashboard)
        return
    if svg is None:
        print_panel(dashboard, width, height)
        return
    console = recording_console(width or WIDTH, height or HEIGHT)
    console.print(dashboard, end="")
    if write_output(svg, captured_file(console, svg.name, f"dpo: {run.name}")):
        echo(f"wrote {svg}")


def _print_samples(run: RunDirectory, dashboard: Dashboard) -> None:
    """Print the last sampled answers of policy and reference.

    Raises:
        DpoError: the run samples no answers.
    """
    sampled = dashboard.view.sampled
    if sampled is None:
        plan = dashboard.view.plan
        if plan is not None and plan.setting("eval.num_samples"):
            raise DpoError(
                f"{run.name} has no samples yet",
                "Answers are sampled at each evaluation of the held-out pairs.",
            )
        raise DpoError(
            f"{run.name} has no samples, because eval.num_samples is 0",
            f"Ask both models: {dpo_command('chat', run.designation)}. A new run with"
            " eval.num_samples = 3 answers three prompts at each evaluation.",
        )
    console = line_console()
    console.print(f"after step {sampled.optimizer_step}")
    # A file or pipe gets each text on one line, which a search finds whole.
    width = terminal_size().width if sys.stdout.isatty() else sys.maxsize
    for label, text in sample_texts(sampled):
        for line in hanging(label, text, width):
            console.print(line)
