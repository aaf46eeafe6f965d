"""`dpo resume`: go on with a run that was stopped, was killed, or is to train for longer."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
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
from dpo_cli.commands.ranks import (
    TorchrunCommand,
    launch_alerts,
    nproc_setting,
    print_torchrun,
    ranks_argv,
    refused_options,
    take_place,
    torchrun_call,
    torchrun_words,
)
from dpo_cli.commands.session import plain_console, run_worker
from dpo_cli.errors import DpoError, UsageError
from dpo_cli.profile.inputs import check_inputs
from dpo_cli.profile.load import load_profile
from dpo_cli.profile.resolved import Change, differences, from_tables, to_toml
from dpo_cli.profile.schema import Profile
from dpo_cli.profile.table import Effect
from dpo_cli.run.directory import RunDirectory, runs_root
from dpo_cli.run.launch import worker_argv
from dpo_cli.run.lookup import find_run
from dpo_cli.run.tracking.registry import requested_trackers, require_trackers

COMMAND_CLASS = TorchrunCommand


def resume(
    context: typer.Context,
    run_name: RunArgument = None,
    settings: SetOption = None,
    allow_changes: Annotated[
        bool,
        typer.Option(
            "--allow-changes",
            help="Go on although --set, or an edit of the run's profile, alters the mathematics.",
        ),
    ] = False,
    exact: Annotated[
        bool,
        typer.Option(
            "--exact", help="Refuse to go on where it would no longer be to the same bits."
        ),
    ] = False,
    nproc: NprocOption = None,
    print_launch: PrintLaunchOption = False,
    runs_dir: RunsDirOption = None,
    plain: PlainOption = False,
    quiet: QuietOption = False,
    detach: DetachOption = False,
) -> None:
    """Go on with a run: from its newest whole state, bit for bit as if it had never stopped.

    Without RUN it is the newest that is unfinished. A finished run goes on when it gets more
    epochs; one that lost its patience, when it gets more of that. It may go on with another number
    of processes; what stands behind a -- goes to torchrun.

    Example: `dpo resume dense --set train.epochs=4 --allow-changes`
    """
    torchrun = torchrun_words(context)
    place = take_place(refused_options(nproc, torchrun, detach))
    settings = [*(settings or ()), *nproc_setting(nproc)]
    run = find_run(runs_root(runs_dir), run_name, prefer=_is_waiting)
    if print_launch:
        profile = load_profile(run.profile_path, settings).profile
        words = ["resume", run.designation, *(["--allow-changes"] if allow_changes else [])]
        print_torchrun(profile, torchrun, [*words, *(["--exact"] if exact else [])], settings)
        return
    with run.locked() as lock:
        new = load_profile(run.profile_path, settings)
        _refuse_to_join(new.profile)
        old = planned_profile(run) or load_profile(run.profile_path).profile
        changes = differences(old, new.profile)
        refuse_changes(run, changes, settings, allow_changes)
        if run.is_completed and (nothing_left := _what_would_go_on(run, old, new.profile)):
            if changes:
                raise UsageError(
                    f"{run.designation} is complete: these changes leave nothing to train",
                    nothing_left,
                )
            console = plain_console()
            console.print(f"{run.designation} is already complete; {nothing_left}")
            console.print(f"export: dpo export {run.designation}")
            return
        check_inputs(new)
        require_trackers(new.profile)
        ranks = torchrun_call(new.profile, place, torchrun)
        undo = _restart(run, to_toml(new.profile)) if changes else _nothing
        worker = worker_argv(run, list(map(str, changes)), exact=exact)
        run_worker(
            run,
            lock,
            ranks_argv(run, ranks, worker),
            place=place,
            alerts=launch_alerts(new, place, torchrun),
            trackers=requested_trackers(new.profile),
            undo=undo,
            plain=plain,
            quiet=quiet,
            detach=detach,
        )


def planned_profile(run: RunDirectory) -> Profile | None:
    """The profile that the run was planned with, whatever its file says now; None before that.

    Raises:
        DpoError: the plan is damaged.
    """
    plan = run.read_plan()
    if plan is None:
        return None
    try:
        return from_tables(plan.settings)
    except ValueError as error:
        raise DpoError(f"{run.plan_path} is damaged: its settings make no profile") from error


def refuse_changes(
    run: RunDirectory, changes: Sequence[Change], settings: Sequence[str], allow_changes: bool
) -> None:
    """Refuse changes under which the saved state means something else.

    Raises:
        UsageError: a change of what a position means, or one of the mathematics that is not
            allowed by the user.
    """
    if moved := [str(change) for change in changes if change.effect is Effect.POSITION]:
        raise UsageError(
            f"{run.designation} cannot go on with other pairs, or pairs in another order",
            f'start a new run from it: dpo train PROFILE --set model.weights="run:{run.name}"',
            moved,
        )
    altered = [str(change) for change in changes if change.effect is Effect.MATHEMATICS]
    if altered and not allow_changes:
        command = shlex.join(
            ["dpo", "resume", run.designation]
            + [word for setting in settings for word in ("--set", setting)]
            + ["--allow-changes"]
        )
        raise UsageError(
            f"{run.designation} would no longer be the run that its profile describes",
            f"if that is what you want: {command}",
            altered,
        )


def _refuse_to_join(profile: Profile) -> None:
    if profile.launch.node_rank:
        raise UsageError(
            f"launch.node_rank = {profile.launch.node_rank}: only the first machine has the run",
            "resume there; here, join it with dpo train PROFILE and the same [launch]",
        )


def _what_would_go_on(run: RunDirectory, old: Profile, new: Profile) -> str | None:
    """What a completed run needs to go on, in words; None if `new` says it.

    One that lost its patience has steps left.
    """
    plan, done = run.read_plan(), run.completed_steps
    if plan is None or done is None or done >= plan.steps.optimizer_steps:
        if new.train.epochs > old.train.epochs:
            return None
        return f"more epochs would go on: --set train.epochs={old.train.epochs + 1} --allow-changes"
    if new.eval.patience == 0 or new.eval.patience > old.eval.patience:
        return None
    return f"more patience would go on: --set eval.patience={2 * old.eval.patience}"


def _is_waiting(run: RunDirectory) -> bool:
    """Whether a run has steps left and nobody trains it."""
    return not run.is_completed and run.holder() is None


def _restart(run: RunDirectory, profile_toml: str) -> Callable[[], None]:
    """Write the changed profile of a run that is to go on; what is returned takes that back.

    The mark of completion goes first: a crash in between leaves a run that finds itself complete.
    """
    profile_before = run.read_profile()
    mark_again = run.clear_completed()
    run.write_profile(profile_toml)

    def undo() -> None:
        run.write_profile(profile_before)
        mark_again()

    return undo


def _nothing() -> None:
    """Take nothing back: nothing was changed."""
