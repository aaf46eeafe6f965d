"""`dpo resume`: continue a run that was stopped or killed, or train a completed run for longer."""

from __future__ import annotations

from typing import Annotated

import typer

from dpo_cli.commands.options import (
    DetachOption,
    NprocOption,
    PlainOption,
    PrintLaunchOption,
    QuietOption,
    RunArgument,
    RunsDirOption,
    SetOption,
)
from dpo_cli.commands.torchrun import (
    TorchrunCommand,
    nproc_setting,
    print_torchrun,
    starter_options,
    torchrun_words,
)
from dpo_cli.commands.training_view import train_in_view
from dpo_cli.profile.load import load_profile
from dpo_cli.run.directory import RunDirectory, runs_root
from dpo_cli.run.lookup import find_run
from dpo_cli.run.rank_start import take_place
from dpo_cli.run.start import AlreadyCompleteError, resumed_run
from dpo_cli.shell import dpo_command
from dpo_cli.ui.terminal.console import line_console

COMMAND_CLASS = TorchrunCommand


def resume(
    context: typer.Context,
    run_name: RunArgument = None,
    settings: SetOption = None,
    allow_changes: Annotated[
        bool,
        typer.Option(
            "--allow-changes",
            help="Continue although --set, or an edit of the run's profile, changes the results.",
        ),
    ] = False,
    exact: Annotated[
        bool,
        typer.Option(
            "--exact", help="Refuse to continue if results could differ in their last bits."
        ),
    ] = False,
    nproc: NprocOption = None,
    print_launch: PrintLaunchOption = False,
    runs_dir: RunsDirOption = None,
    plain: PlainOption = False,
    quiet: QuietOption = False,
    detach: DetachOption = False,
) -> None:
    """Continue a run from its newest verified checkpoint, with identical results.

    Without RUN, continue the newest unfinished run. A completed run continues with more epochs; a
    run that stopped early continues with more patience. You may change the number of processes;
    words after -- go to torchrun.

    Example: `dpo resume dense --set train.epochs=4 --allow-changes`
    """
    torchrun = torchrun_words(context)
    place = take_place(starter_options(nproc, torchrun, detach))
    settings = [*(settings or ()), *nproc_setting(nproc)]
    run = find_run(runs_root(runs_dir), run_name, prefer=_is_waiting)
    if print_launch:
        profile = load_profile(run.profile_path, settings).profile
        words = ["resume", run.designation, *(["--allow-changes"] if allow_changes else [])]
        print_torchrun(profile, torchrun, [*words, *(["--exact"] if exact else [])], settings)
        return
    try:
        with resumed_run(
            run, settings, allow_changes=allow_changes, exact=exact, torchrun=torchrun, place=place
        ) as start:
            train_in_view(start, plain=plain, quiet=quiet, detach=detach)
    except AlreadyCompleteError as complete:
        console = line_console()
        console.print(f"{complete.message}. {complete.remedy}")
        console.print(f"export: {dpo_command('export', run.designation)}")


def _is_waiting(run: RunDirectory) -> bool:
    """Return True if a run has steps left and no process trains it."""
    return not run.is_completed and run.holder() is None
