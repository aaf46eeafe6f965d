"""`dpo train`: start a new run."""

from __future__ import annotations

from typing import Annotated

import typer

from dpo_cli.commands.options import (
    DetachOption,
    NprocOption,
    PlainOption,
    PrintLaunchOption,
    ProfileArgument,
    QuietOption,
    RunsDirOption,
    SetOption,
)
from dpo_cli.commands.torchrun import (
    TorchrunCommand,
    join_run,
    nproc_setting,
    print_torchrun,
    starter_options,
    torchrun_words,
)
from dpo_cli.commands.training_view import train_in_view
from dpo_cli.profile.load import load_profile
from dpo_cli.run.directory import runs_root
from dpo_cli.run.rank_start import take_place
from dpo_cli.run.start import new_run

COMMAND_CLASS = TorchrunCommand


def train(
    context: typer.Context,
    profile: ProfileArgument,
    settings: SetOption = None,
    name: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Name the run. Default: the profile's name.",
            show_default=False,
        ),
    ] = None,
    nproc: NprocOption = None,
    print_launch: PrintLaunchOption = False,
    runs_dir: RunsDirOption = None,
    plain: PlainOption = False,
    quiet: QuietOption = False,
    detach: DetachOption = False,
) -> None:
    """Train a model on preference pairs as a profile describes.

    The profile and the paths of all inputs are checked before torch is loaded. Ctrl-C saves and
    stops; `dpo resume` continues with identical results. Train with several processes with
    --nproc, torchrun or srun; words after -- go to torchrun.

    Example: `dpo train my.toml --set train.epochs=1 --name first`
    """
    torchrun = torchrun_words(context)
    place = take_place(starter_options(nproc, torchrun, detach))
    settings = [*(settings or ()), *nproc_setting(nproc)]
    loaded = load_profile(profile, settings)
    if print_launch:
        words = ["train", str(profile), *(["--name", name] if name else [])]
        words += ["--runs-dir", str(runs_dir)] if runs_dir else []
        print_torchrun(loaded.profile, torchrun, words, settings)
        return
    if loaded.profile.launch.node_rank and not place:
        raise typer.Exit(join_run(loaded.profile, torchrun))
    with new_run(
        loaded, runs_root(runs_dir), name, torchrun=torchrun, place=place, keep_refused=detach
    ) as start:
        train_in_view(start, plain=plain, quiet=quiet, detach=detach)
