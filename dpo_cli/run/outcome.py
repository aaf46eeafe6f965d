"""Outcome of one launch: how the worker ended, and the exit code or error that follows from it."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum, auto

from dpo_cli.errors import DpoError, ExitCode
from dpo_cli.run.directory import RunDirectory
from dpo_cli.run.disk import no_space
from dpo_cli.run.events import (
    Completed,
    Event,
    Failed,
    Planned,
    RankEnded,
    Resumed,
    Stopped,
    WorkerStarted,
)
from dpo_cli.run.exit_reason import exit_text, rank_ending

SAVED_CODES = {int(c): c for c in (ExitCode.DONE, ExitCode.INTERRUPTED, ExitCode.TERMINATED)}
"""Return codes of a process that saved its state before it ended."""
_STOPPED_CODES = {"interrupted": ExitCode.INTERRUPTED, "terminated": ExitCode.TERMINATED}


class End(Enum):
    """Kinds of ends; all but `SAVED` are errors."""

    SAVED = auto()
    """The run is complete, or it saved its state and stopped."""
    FAILED = auto()
    """The worker reported an error in the event stream."""
    NO_SPACE = auto()
    """The disk was too full even for that report."""
    NOT_STARTED = auto()
    """The user stopped the run before the first step was planned or resumed."""
    KILLED = auto()
    """The user stopped the run without saving."""
    RANK_LOST = auto()
    """A rank died or hung, and was not started again."""
    CRASHED = auto()
    """The worker died without a report."""


@dataclass(frozen=True)
class SentSignals:
    """Signals that the launcher sent to the worker.

    Args:
        interrupts: number of Ctrl-C; the second one is sent as SIGKILL.
        terminated: True after a SIGTERM.
    """

    interrupts: int = 0
    terminated: bool = False

    @property
    def stop_code(self) -> ExitCode | None:
        """Exit code of a process that was asked to stop; None if it was not."""
        if self.terminated:
            return ExitCode.TERMINATED
        return ExitCode.INTERRUPTED if self.interrupts else None

    def death_code(self, returncode: int) -> ExitCode | None:
        """Return the exit code of a worker that one of these signals killed, else None.

        A SIGKILL after a single Ctrl-C came from elsewhere, for example from the kernel's
        out-of-memory killer, and counts as a crash.
        """
        if self.interrupts > 1 and returncode == -signal.SIGKILL:
            return ExitCode.INTERRUPTED
        if self.interrupts and returncode == -signal.SIGINT:
            return ExitCode.INTERRUPTED
        if self.terminated and returncode == -signal.SIGTERM:
            return ExitCode.TERMINATED
        return None


@dataclass(frozen=True)
class LastEvents:
    """Events of this launch that decide about its outcome.

    Args:
        under_way: the run was planned or resumed, so that there may be progress to keep.
        ending: exit code that belongs to the last `Completed` or `Stopped`.
        failure: last error that the worker reported.
        lost: ranks that failed since the ranks were last started.
    """

    under_way: bool = False
    ending: ExitCode | None = None
    failure: Failed | None = None
    lost: tuple[RankEnded, ...] = ()

    def after(self, event: Event) -> LastEvents:
        """Return the state after one more event."""
        match event:
            case WorkerStarted():  # torchrun restarts lost ranks: earlier losses no longer count
                return replace(self, ending=None, lost=())
            case Planned() | Resumed():
                return replace(self, under_way=True)
            case Failed():
                return replace(self, failure=event)
            case Completed():
                return replace(self, ending=ExitCode.DONE)
            case Stopped():
                return replace(self, ending=_STOPPED_CODES[event.reason])
            case RankEnded():
                return replace(self, lost=(*self.lost, event))
        return self


@dataclass(frozen=True)
class Outcome:
    """End of a launch.

    Args:
        end: kind of end.
        code: exit code of the launcher.
        undo: take back the changes on disk that the caller made for this launch.
    """

    end: End
    code: ExitCode
    undo: bool = False


def outcome_of(returncode: int, sent: SentSignals, last: LastEvents) -> Outcome:
    """Decide how a launch ended.

    Args:
        returncode: of the worker or agent, negative for a signal. The agent returns 0 also for a
            run that stopped, because torchrun treats any other code as a crash.
        sent: signals that the launcher sent.
        last: state of the event stream after the worker's end.
    """
    death = sent.death_code(returncode)
    code = death if death is not None else SAVED_CODES.get(returncode)
    # The stream is more precise than the agent's return code. A rank that fails after the main
    # rank reported the end of the run does not change that end.
    if last.ending is not None and death is None and (returncode == 0 or last.lost):
        code = last.ending
    stopped = code in (ExitCode.INTERRUPTED, ExitCode.TERMINATED)
    # Before the plan there is nothing to keep, but only where the user or the worker decided to
    # end: after a crash the directory stays, since its logs are needed to find the reason.
    undo = not last.under_way and (last.failure is not None or stopped)
    if last.failure is not None:
        return Outcome(End.FAILED, ExitCode(last.failure.exit_code), undo)
    if returncode == ExitCode.NO_SPACE:
        return Outcome(End.NO_SPACE, ExitCode.NO_SPACE)
    if code is None:
        return Outcome(End.RANK_LOST if last.lost else End.CRASHED, ExitCode.FAILED)
    if stopped and not last.under_way:
        return Outcome(End.NOT_STARTED, code, undo)
    return Outcome(End.SAVED if death is None else End.KILLED, code)


def error_of(
    outcome: Outcome, last: LastEvents, run: RunDirectory, returncode: int, last_line: str
) -> DpoError:
    """Build the error message of an outcome other than `End.SAVED`.

    Args:
        outcome: to explain.
        last: state of the event stream.
        run: the run directory, with its checkpoints.
        returncode: of the worker.
        last_line: last line that the worker printed, often that of a traceback.
    """
    log = f"the output is in {run.worker_log_path}"
    match outcome.end:
        case End.FAILED:
            assert last.failure is not None
            error = last.failure.to_error()
        case End.NO_SPACE:
            error = no_space(run.path)
        case End.NOT_STARTED:
            error = DpoError("stopped before the run was planned: nothing was trained")
        case End.KILLED:
            error = DpoError("stopped at once, without saving", *_how_to_resume(run))
        case End.RANK_LOST:
            remedy, state = _how_to_resume(run)
            first, *others = map(rank_ending, last.lost)
            error = DpoError(first, remedy, [*others, *state, log])
        case _:
            message = f"the worker {exit_text(returncode)}"
            if returncode > 0 and last_line:
                message += f": {last_line}"
            remedy, state = _how_to_resume(run)
            error = DpoError(message, remedy, [*state, log])
    error.exit_code = outcome.code
    return error


def _how_to_resume(run: RunDirectory) -> tuple[str, Sequence[str]]:
    """Return the remedy after an end without saving, and details about the newest checkpoint."""
    checkpoint, passed_over = run.newest_verified()
    state = (
        f"the newest intact checkpoint is {checkpoint.name}, after optimizer step"
        f" {checkpoint.optimizer_step}"
        if checkpoint
        else "no checkpoint was saved yet: a resume starts at the first step"
    )
    return run.resume_hint, [*passed_over, state]
