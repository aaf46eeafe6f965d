"""`dpo demo`: train the built-in demo and export it."""

from __future__ import annotations

import typer

from dpo_cli.commands.export import export
from dpo_cli.commands.options import PlainOption, QuietOption, RunsDirOption
from dpo_cli.commands.training_view import train_in_view
from dpo_cli.errors import ExitCode
from dpo_cli.profile.load import load_profile
from dpo_cli.profile.source import shipped_profiles
from dpo_cli.run.directory import runs_root
from dpo_cli.run.start import new_run
from dpo_cli.shell import dpo_command
from dpo_cli.ui.terminal.console import line_console


def demo(
    runs_dir: RunsDirOption = None, plain: PlainOption = False, quiet: QuietOption = False
) -> None:
    """Train the built-in demo and export it, to see dpo at work.

    A tiny model learns to say goodbye in the tone of the question. The training takes under a
    minute on two CPU cores, needs no network, and writes a run into ./runs. These are the steps
    `dpo train demo` and `dpo export demo`.

    Example: `dpo demo`
    """
    # By its path: a file called "demo" here is another profile.
    loaded = load_profile(shipped_profiles()["demo"])
    with new_run(loaded, runs_root(runs_dir), None) as start:
        run = start.run
        try:
            train_in_view(start, plain=plain, quiet=quiet, detach=False)
        except typer.Exit as end:
            if end.exit_code != ExitCode.DONE:
                raise
    if not run.is_completed:  # the user has left the panel
        return
    export(str(run.path))
    console = line_console()
    console.print(f"look at it again: {dpo_command('show', run.designation)}")
    console.print(f"chat with it: {dpo_command('chat', run.designation)}")
    console.print(f"next, your own model: {dpo_command('init', 'my-run')}")
