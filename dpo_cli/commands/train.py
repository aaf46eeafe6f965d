"""`dpo train`: a new run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dpo_cli.commands.options import (
    DetachOption,
    PlainOption,
    ProfileArgument,
    QuietOption,
    RunsDirOption,
    SetOption,
)

if TYPE_CHECKING:
    from dpo_cli.profile.schema import Profile


def train(
    profile: ProfileArgument,
    settings: SetOption = None,
    name: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="What to call the run; else as the profile.", show_default=False
        ),
    ] = None,
    runs_dir: RunsDirOption = None,
    plain: PlainOption = False,
    quiet: QuietOption = False,
    detach: DetachOption = False,
) -> None:
    """Train a model on preference pairs, as a profile says.

    Everything that is cheap to check is checked first. Ctrl-C saves and stops; `dpo resume` goes
    on from there with the very same numbers.

    Example: `dpo train my.toml --set train.epochs=1 --name first`
    """
    from dpo_cli.commands.session import run_worker
    from dpo_cli.profile.inputs import check_inputs
    from dpo_cli.profile.load import load_profile
    from dpo_cli.profile.resolved import to_toml
    from dpo_cli.run.store import RunDirectory, runs_root

    loaded = load_profile(profile, settings or ())
    check_inputs(loaded)
    root = runs_root(runs_dir)
    pinned = _pin_weights(loaded.profile, root)
    run = RunDirectory.create(root, name or loaded.name, to_toml(pinned))
    try:
        lock = run.lock()
    except BaseException:
        run.remove()
        raise
    # A run in the background leaves nothing but its directory to learn from why it was refused.
    undo = _leave if detach else run.remove
    try:
        run_worker(run, lock, undo=undo, plain=plain, quiet=quiet, detach=detach)
    finally:
        os.close(lock)


def _pin_weights(profile: Profile, root: Path) -> Profile:
    """`profile` with weights named so that they mean the same tomorrow.

    The only checkpoint in out_dir may get company, and a profile's name after "run:" means its
    newest run, which in a moment is the one that is being started.

    Raises:
        UsageError: there is no such run.
    """
    from dpo_cli.profile.inputs import resolve_checkpoint
    from dpo_cli.run.store import find_run

    pinned = {"checkpoint": resolve_checkpoint(profile, "checkpoint")}
    if profile.model.reference is not None:
        pinned["reference"] = resolve_checkpoint(profile, "reference")
    for key, weights in pinned.items():
        if weights.startswith("run:"):
            run = find_run(root, weights.removeprefix("run:"))
            is_in_root = run.path.parent.resolve() == root.resolve()
            pinned[key] = f"run:{run.name if is_in_root else run.path.resolve()}"
    return profile.model_copy(update={"model": profile.model.model_copy(update=pinned)})


def _leave() -> None:
    """Take nothing back."""
