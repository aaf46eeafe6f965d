"""One path from a profile to a running worker, for new runs, resumed runs and points of a sweep.

Everything here happens before torch is imported: inputs are checked, the run directory is created
or changed, its lock is taken, and the command line of the worker is written down.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dpo_cli.errors import DpoError, ExitCode, UsageError
from dpo_cli.hub.download import is_on_hub
from dpo_cli.machine import require_processes
from dpo_cli.profile.hub import at_commit
from dpo_cli.profile.inputs import check_inputs, resolve_data, resolve_weights
from dpo_cli.profile.load import LoadedProfile, load_profile
from dpo_cli.profile.resolved import Change, differences, from_tables, to_toml
from dpo_cli.profile.schema import Profile
from dpo_cli.profile.table import Effect
from dpo_cli.run import launch
from dpo_cli.run.directory import RunDirectory
from dpo_cli.run.events import Alert
from dpo_cli.run.lookup import find_run
from dpo_cli.run.placement import Place, begun_run, mark_run
from dpo_cli.run.processes import Starter, start_worker
from dpo_cli.run.rank_start import launch_alerts, ranks_argv, torchrun_call
from dpo_cli.run.signals import SignalRelay
from dpo_cli.run.tracking.registry import requested_trackers, require_trackers
from dpo_cli.shell import dpo_command


class AlreadyCompleteError(DpoError):
    """The run has trained all its steps and the settings add none."""

    exit_code = ExitCode.DONE


@dataclass(frozen=True)
class Undo:
    """Changes on disk to take back if the worker refuses the run before it is planned.

    Plain values, so that a launcher in another process can take them back.

    Attributes:
        run: path of the run directory.
        remove: remove the whole directory, because this start created it.
        profile: TOML text to write back.
        completed: text of the COMPLETED file to write back.
    """

    run: Path
    remove: bool = False
    profile: str | None = None
    completed: str | None = None

    def __call__(self) -> None:
        """Restore the directory to its state before the start."""
        run = RunDirectory(self.run)
        if self.remove:
            run.remove()
        if self.profile is not None:
            run.write_profile(self.profile)
        if self.completed is not None:
            run.mark_completed(**json.loads(self.completed))


@dataclass(frozen=True)
class Start:
    """A run that is ready to train; the caller holds its lock.

    Attributes:
        run: run directory.
        lock: descriptor of the lock, which the worker inherits.
        argv: command line of the worker, or of the torchrun agent over several ranks.
        undo: restores the run directory if the worker refuses the run.
        alerts: written to the event stream before the worker starts.
        trackers: names of the trackers that receive the metrics.
        place: place of rank 0 if torchrun or Slurm started this process.
    """

    run: RunDirectory
    lock: int
    argv: Sequence[str]
    undo: Undo
    alerts: Sequence[Alert] = ()
    trackers: Sequence[str] = ()
    place: Place | None = None

    def launch(
        self,
        observe: launch.Observer,
        *,
        starter: Starter = start_worker,
        signals: SignalRelay | None = None,
    ) -> ExitCode:
        """Train in a child process and wait for its end.

        Args:
            observe: called with each new event, in order.
            starter: starts the worker process.
            signals: relay of the caller, if the caller handles signals beyond this run.

        Returns:
            DONE, INTERRUPTED or TERMINATED: the ends that leave a complete checkpoint.

        Raises:
            DpoError: the run failed.
        """
        launcher = launch.Launcher(
            self.run,
            self.lock,
            self.argv,
            observe=observe,
            alerts=self.alerts,
            trackers=self.trackers,
            undo=self.undo,
            start=starter,
            signals=signals,
        )
        return launcher.run()


@contextmanager
def new_run(
    loaded: LoadedProfile,
    root: Path,
    name: str | None = None,
    *,
    torchrun: Sequence[str] = (),
    place: Place | None = None,
    keep_refused: bool = False,
) -> Iterator[Start]:
    """Create the directory of a new run and hold its lock for a block.

    Args:
        loaded: profile of the run.
        root: directory that holds the runs.
        name: name of the run; by default the profile's.
        torchrun: extra arguments of torchrun.
        place: place of rank 0 if torchrun or Slurm started this process. A restart by the same
            torchrun continues the run that it created.
        keep_refused: keep the directory of a run that the worker refuses. A run in the background
            has no other place to show the reason.

    Raises:
        UsageError: an input is missing or the settings contradict each other, or this is Windows;
            nothing is created.
    """
    require_processes()
    check_inputs(loaded)
    require_trackers(loaded.profile)
    ranks = torchrun_call(loaded.profile, place, torchrun)
    run = begun_run(root, place) if place else None
    is_new = run is None
    if run is None:
        profile = pin_inputs(loaded.profile, root)
        run = RunDirectory.create(root, name or loaded.name, to_toml(profile))
    try:
        lock = run.lock()
        if place and is_new:
            mark_run(run, place)
    except BaseException:
        if is_new:
            run.remove()
        raise
    try:
        yield Start(
            run,
            lock,
            ranks_argv(run, ranks, launch.worker_argv(run)),
            undo=Undo(run.path, remove=is_new and not keep_refused),
            alerts=launch_alerts(loaded, place, torchrun),
            trackers=requested_trackers(loaded.profile),
            place=place,
        )
    finally:
        os.close(lock)


@contextmanager
def resumed_run(
    run: RunDirectory,
    settings: Sequence[str] = (),
    *,
    allow_changes: bool = False,
    exact: bool = False,
    torchrun: Sequence[str] = (),
    place: Place | None = None,
) -> Iterator[Start]:
    """Hold the lock of an existing run for a block, with changed settings written to its profile.

    Args:
        run: run to continue.
        settings: changed keys, as "key=value".
        allow_changes: accept changes of the mathematics.
        exact: refuse to continue if the results could differ in their last bits.
        torchrun: extra arguments of torchrun.
        place: place of rank 0 if torchrun or Slurm started this process.

    Raises:
        AlreadyCompleteError: no step is left and no setting changed.
        UsageError: the changes are not allowed, or an input is missing.
        DpoError: another process trains the run.
    """
    with run.locked() as lock:
        new = load_profile(run.profile_path, settings)
        if new.profile.launch.node_rank:
            raise UsageError(
                f"launch.node_rank = {new.profile.launch.node_rank}: only the first machine has"
                " the run",
                "Resume there. Here, join with dpo train PROFILE and the same [launch].",
            )
        old = planned_profile(run) or load_profile(run.profile_path).profile
        changes = differences(old, new.profile)
        refuse_changes(run, changes, settings, allow_changes)
        if run.is_completed and (hint := _how_to_continue(run, old, new.profile)):
            if changes:
                raise UsageError(
                    f"{run.designation} is complete and these changes add no step to train", hint
                )
            raise AlreadyCompleteError(f"{run.designation} is already complete", hint)
        check_inputs(new)
        new = replace(new, profile=_pin_data(new.profile))
        require_trackers(new.profile)
        ranks = torchrun_call(new.profile, place, torchrun)
        undo = _rewrite(run, to_toml(new.profile)) if changes else Undo(run.path)
        worker = launch.worker_argv(run, list(map(str, changes)), exact=exact)
        yield Start(
            run,
            lock,
            ranks_argv(run, ranks, worker),
            undo=undo,
            alerts=launch_alerts(new, place, torchrun),
            trackers=requested_trackers(new.profile),
            place=place,
        )


@contextmanager
def sweep_run(run: RunDirectory, profile: Profile) -> Iterator[tuple[Start, bool]]:
    """Hold the lock of a sweep's run for a block.

    Yields:
        The start, and True if a single process trains the run.
    """
    ranks = torchrun_call(profile, None, ())
    argv = ranks_argv(run, ranks, launch.worker_argv(run))
    with run.locked() as lock:
        start = Start(run, lock, argv, undo=Undo(run.path), trackers=requested_trackers(profile))
        yield start, ranks is None


def pin_inputs(profile: Profile, root: Path) -> Profile:
    """Return the profile with names that always mean the same weights and data.

    A later start must not find other files under the same names: out_dir may get a second weights
    file, a model or data set on the Hub a new commit, and a profile's name after "run:" means its
    newest run, which will be the run that starts now.

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
        elif is_on_hub(model_id := getattr(profile.model, key) or ""):
            pinned[key] = at_commit(model_id, Path(weights))
    model = profile.model.model_copy(update=pinned)
    return _pin_data(profile.model_copy(update={"model": model}))


def _pin_data(profile: Profile) -> Profile:
    """Return the profile with the commits of its data sets on the Hub."""

    def pinned(key: str, path: Path) -> Path:
        return Path(resolve_data(key, path).name) if is_on_hub(path) else path

    paths: Any = [pinned("data.data_path", path) for path in profile.data.paths]
    if not isinstance(profile.data.data_path, list):
        (paths,) = paths
    held_out = profile.eval.path and pinned("eval.path", profile.eval.path)
    data = profile.data.model_copy(update={"data_path": paths})
    eval_ = profile.eval.model_copy(update={"path": held_out})
    return profile.model_copy(update={"data": data, "eval": eval_})


def planned_profile(run: RunDirectory) -> Profile | None:
    """Return the profile that the run was planned with, or None if it was never planned.

    The profile file may have been edited since.

    Raises:
        DpoError: the plan is damaged.
    """
    plan = run.read_plan()
    if plan is None:
        return None
    try:
        return from_tables(plan.settings)
    except ValueError as error:
        raise DpoError(f"{run.plan_path} is damaged: its settings are no valid profile") from error


def refuse_changes(
    run: RunDirectory, changes: Sequence[Change], settings: Sequence[str], allow_changes: bool
) -> None:
    """Refuse changes that give the saved checkpoint another meaning.

    Raises:
        UsageError: a change alters the order of the pairs, or alters the mathematics without
            `allow_changes`.
    """
    if positions := [change for change in changes if change.effect is Effect.POSITION]:
        moved = [str(change) for change in positions]
        what = "other pairs or another order of the pairs"
        if all(change.key.startswith("lora.") for change in positions):
            what = "another adapter"
        elif all(change.key == "model.quantization" for change in positions):
            what = "another quantization"
        elif all(change.key == "model.weights_dtype" for change in positions):
            what = "weights of another dtype"
        elif all(change.key == "train.optimizer" for change in positions):
            what = "another optimizer: its checkpoints have the state of the first one"
        raise UsageError(
            f"{run.designation} cannot continue with {what}",
            "Start a new run from it: "
            + dpo_command("train", "PROFILE", "--set", f"model.weights=run:{run.name}"),
            moved,
        )
    altered = [str(change) for change in changes if change.effect is Effect.MATHEMATICS]
    if altered and not allow_changes:
        raise UsageError(
            f"{run.designation} would no longer be the run that its profile describes",
            f"To continue anyway: {resume_command(run, settings, '--allow-changes')}",
            altered,
        )


def resume_command(run: RunDirectory, settings: Sequence[str], *options: str) -> str:
    """Return the command line that resumes a run with these settings."""
    words = ["resume", run.designation]
    words += [word for setting in settings for word in ("--set", setting)]
    return dpo_command(*words, *options)


def _how_to_continue(run: RunDirectory, old: Profile, new: Profile) -> str | None:
    """Return what a completed run needs to train further; None if `new` has it.

    A run that stopped early (eval.patience) has steps left.
    """
    plan, done = run.read_plan(), run.completed_steps
    if plan is None or done is None or done >= plan.steps.optimizer_steps:
        if new.train.epochs > old.train.epochs:
            return None
        return f"Train more epochs with: --set train.epochs={old.train.epochs + 1} --allow-changes"
    if new.eval.patience == 0 or new.eval.patience > old.eval.patience:
        return None
    return f"Train longer with more patience: --set eval.patience={2 * old.eval.patience}"


def _rewrite(run: RunDirectory, profile_toml: str) -> Undo:
    """Write a changed profile and clear the completion mark.

    The mark goes first: a crash in between leaves a run that is complete only if it really is.
    """
    completed = run.completed_path.read_text(encoding="utf-8") if run.is_completed else None
    undo = Undo(run.path, profile=run.read_profile(), completed=completed)
    run.clear_completed()
    run.write_profile(profile_toml)
    return undo
