"""`dpo train`: a new run."""

from __future__ import annotations

import os
from pathlib import Path
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
from dpo_cli.commands.ranks import (
    TorchrunCommand,
    join_run,
    launch_alerts,
    nproc_setting,
    print_torchrun,
    ranks_argv,
    refused_options,
    take_place,
    torchrun_call,
    torchrun_words,
)
from dpo_cli.commands.session import run_worker
from dpo_cli.profile.hub import at_commit, is_on_hub
from dpo_cli.profile.inputs import check_inputs, resolve_weights
from dpo_cli.profile.load import LoadedProfile, load_profile
from dpo_cli.profile.resolved import to_toml
from dpo_cli.profile.schema import Profile
from dpo_cli.run.directory import RunDirectory, runs_root
from dpo_cli.run.launch import worker_argv
from dpo_cli.run.lookup import find_run
from dpo_cli.run.placement import begun_run, mark_run
from dpo_cli.run.tracking.registry import requested_trackers, require_trackers

COMMAND_CLASS = TorchrunCommand


def train(
    context: typer.Context,
    profile: ProfileArgument,
    settings: SetOption = None,
    name: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="What to call the run; else as the profile.", show_default=False
        ),
    ] = None,
    nproc: NprocOption = None,
    print_launch: PrintLaunchOption = False,
    runs_dir: RunsDirOption = None,
    plain: PlainOption = False,
    quiet: QuietOption = False,
    detach: DetachOption = False,
) -> None:
    """Train a model on preference pairs, as a profile says.

    Everything that is cheap to check is checked first. Ctrl-C saves and stops; `dpo resume` goes
    on from there with the very same numbers. Several processes train together with --nproc, or
    started by torchrun or srun; what stands behind a -- goes to torchrun.

    Example: `dpo train my.toml --set train.epochs=1 --name first`
    """
    torchrun = torchrun_words(context)
    place = take_place(refused_options(nproc, torchrun, detach))
    settings = [*(settings or ()), *nproc_setting(nproc)]
    loaded = load_profile(profile, settings)
    if print_launch:
        words = ["train", str(profile), *(["--name", name] if name else [])]
        words += ["--runs-dir", str(runs_dir)] if runs_dir else []
        print_torchrun(loaded.profile, torchrun, words, settings)
        return
    if loaded.profile.launch.node_rank and not place:
        raise typer.Exit(join_run(loaded.profile, torchrun))
    check_inputs(loaded)
    require_trackers(loaded.profile)
    ranks = torchrun_call(loaded.profile, place, torchrun)
    root = runs_root(runs_dir)
    run = begun_run(root, place) if place else None
    is_new = run is None
    if run is None:
        run = _new_run(loaded, root, name or loaded.name)
    try:
        lock = run.lock()
        if place and is_new:
            mark_run(run, place)
    except BaseException:
        if is_new:
            run.remove()
        raise
    # A run in the background leaves nothing but its directory to learn from why it was refused.
    undo = run.remove if is_new and not detach else _leave
    try:
        run_worker(
            run,
            lock,
            ranks_argv(run, ranks, worker_argv(run)),
            place=place,
            alerts=launch_alerts(loaded, place, torchrun),
            trackers=requested_trackers(loaded.profile),
            undo=undo,
            plain=plain,
            quiet=quiet,
            detach=detach,
        )
    finally:
        os.close(lock)


def _new_run(loaded: LoadedProfile, root: Path, name: str) -> RunDirectory:
    return RunDirectory.create(root, name, to_toml(pin_weights(loaded.profile, root)))


def pin_weights(profile: Profile, root: Path) -> Profile:
    """`profile` with weights named so that they mean the same tomorrow.

    The only checkpoint in out_dir may get company, a model on the Hub another commit, and a
    profile's name after "run:" means its newest run, which in a moment is the one that is being
    started.

    Raises:
        UsageError: there is no such run.
    """
    pinned = {"weights": resolve_weights(profile, "weights")}
    if profile.model.reference is not None:
        pinned["reference"] = resolve_weights(profile, "reference")
    for key, weights in pinned.items():
        if weights.startswith("run:"):
            run = find_run(root, weights.removeprefix("run:"))
            is_in_root = run.path.parent.resolve() == root.resolve()
            pinned[key] = f"run:{run.name if is_in_root else run.path.resolve()}"
        elif is_on_hub(stated := getattr(profile.model, key) or ""):
            pinned[key] = at_commit(stated, Path(weights))
    return profile.model_copy(update={"model": profile.model.model_copy(update=pinned)})


def _leave() -> None:
    """Take nothing back."""
