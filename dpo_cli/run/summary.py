"""Summary of a run in one line: state, progress, metrics, time and size."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from dpo_cli.errors import DpoError, first_line
from dpo_cli.run.directory import RunDirectory
from dpo_cli.run.events import ACCURACY, without_early_steps
from dpo_cli.run.view import RECENT_STEPS, RunState, RunView


@dataclass(frozen=True)
class RunSummary:
    """One run; None where a value is not known yet.

    Attributes:
        name: name of the run directory.
        state: never a state before or within training other than TRAINING.
        holder: process that trains the run.
        started: wall-clock seconds since the epoch.
        step: micro-batches done.
        total_steps: micro-batches planned.
        loss: mean training loss of the last optimizer steps.
        held_out_accuracy: reward accuracy of the last evaluation.
        best_step: step of the checkpoint with the lowest held-out loss, if the run keeps one.
        seconds: training time of all starts.
        size_bytes: size of the run directory.
        problem: reason why the run or its lock cannot be read; None if both can.
    """

    name: str
    state: RunState
    holder: str | None
    started: float | None
    step: int
    total_steps: int | None
    loss: float | None
    held_out_accuracy: float | None
    best_step: int | None
    seconds: float
    size_bytes: int
    problem: str | None = None


def summarize(run: RunDirectory) -> RunSummary:
    """Summarize a run from its lock, its completion mark and its events.

    A run that cannot be read has only a name, a state and a problem, so a list of runs does not
    fail.
    """
    try:
        return _summarize(run)
    except (DpoError, OSError) as error:
        return _unreadable(run, error)


def _summarize(run: RunDirectory) -> RunSummary:
    holder, problem = None, None
    with suppress(FileNotFoundError):
        run.profile_path.stat()  # raises for a directory of another user
    try:
        holder = run.look_at_lock()
    except OSError as error:
        problem = error.strerror
    if run.is_of_other_version:
        view, state = RunView(), RunState.OTHER_VERSION
    else:
        view = RunView.of(without_early_steps(run.events_path, RECENT_STEPS))
        state = _state(run, holder, view)
        if state is RunState.KILLED and problem and view.ending is None:
            state = RunState.UNKNOWN
    losses = [step.metrics["loss"] for step in view.recent if "loss" in step.metrics]
    return RunSummary(
        name=run.name,
        state=state,
        holder=holder,
        started=view.started,
        step=view.step,
        total_steps=view.total_steps or None,
        loss=sum(losses) / len(losses) if losses else None,
        held_out_accuracy=(view.held_out.metrics.get(ACCURACY) if view.held_out else None),
        best_step=view.best.step if view.best else None,
        # At the time of the last event: a run that was killed has not trained since.
        seconds=view.elapsed_seconds(view.time),
        size_bytes=_size(run.path),
        problem=problem,
    )


def _unreadable(run: RunDirectory, error: Exception) -> RunSummary:
    problem, cause = first_line(error), error.__cause__ or error
    if isinstance(cause, OSError) and cause.filename:
        problem = f"{Path(cause.filename).name}: {cause.strerror}"
    return RunSummary(
        name=run.name,
        state=RunState.UNREADABLE,
        holder=None,
        started=None,
        step=0,
        total_steps=None,
        loss=None,
        held_out_accuracy=None,
        best_step=None,
        seconds=0.0,
        size_bytes=_size(run.path),
        problem=problem,
    )


def _state(run: RunDirectory, holder: str | None, view: RunView) -> RunState:
    if holder is not None:
        return RunState.TRAINING
    if run.is_completed:
        return RunState.COMPLETED
    # Without a process, a run that wrote no ending was killed. So was one that is complete
    # according to its events but died before it wrote the completion mark.
    if view.state in (RunState.STOPPED, RunState.FAILED):
        return view.state
    return RunState.KILLED


def _size(directory: Path) -> int:
    """Return the bytes of all files; files that vanish meanwhile count 0."""
    total = 0
    for path in directory.rglob("*"):
        try:
            total += path.lstat().st_size if path.is_file() else 0
        except OSError:  # removed meanwhile, or in a directory of another user
            continue
    return total
