"""The launcher: starts the worker, watches its event stream, passes on signals, tells how it ended.

It imports no torch. The worker lives in a session of its own, so that a Ctrl-C reaches the launcher
alone, and holds the run's lock through the descriptor that it inherits.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from dpo_cli.errors import DpoError, ExitCode
from dpo_cli.files import open_for_appending
from dpo_cli.run.directory import RunDirectory
from dpo_cli.run.disk import explain_disk_errors, no_space
from dpo_cli.run.events import (
    Alert,
    Completed,
    Event,
    EventReader,
    EventWriter,
    Failed,
    Planned,
    RankEnded,
    Resumed,
    Stopped,
    WorkerEnded,
    WorkerStarted,
    drop_torn_tail,
)
from dpo_cli.run.exit_reason import death, rank_ending
from dpo_cli.run.locked_directory import LockedDirectory, sign_lock
from dpo_cli.run.processes import Starter, Worker, start_worker
from dpo_cli.run.signals import SignalRelay
from dpo_cli.run.torchrun import agent_argv
from dpo_cli.run.tracking.side import Trackers

Observer = Callable[[Event], None]

_POLL_SECONDS = 0.2
_LOG_TAIL_BYTES = 8192
_SAVED = {int(c): c for c in (ExitCode.DONE, ExitCode.INTERRUPTED, ExitCode.TERMINATED)}
_ASKED = {"interrupted": ExitCode.INTERRUPTED, "terminated": ExitCode.TERMINATED}
_STOPPING = Alert(code="stopping", message="stopping after this step; Ctrl-C again to stop now")


def worker_argv(
    run: RunDirectory, changes: Sequence[str] = (), *, exact: bool = False
) -> list[str]:
    """The command line of the worker.

    Args:
        run: to train.
        changes: the profile's differences, for the stream.
        exact: the worker is to refuse where it cannot go on to the same bits.
    """
    argv = [sys.executable, "-m", "dpo_cli.training.worker", str(run.path)]
    if exact:
        argv.append("--exact")
    for change in changes:
        argv += ["--change", change]
    return argv


def supervise(
    run: RunDirectory,
    lock: int,
    argv: Sequence[str],
    observe: Observer,
    *,
    alerts: Sequence[Alert] = (),
    undo: Callable[[], None] = lambda: None,
    start: Starter = start_worker,
    signals: SignalRelay | None = None,
    trackers: Sequence[str] = (),
) -> ExitCode:
    """Start the worker, let `observe` see every event it appends, and wait for its end.

    The worker may also be the agent over several ranks (`dpo_cli.distributed.agent`), which ends
    well however the run does; how it did is then in the stream.

    A failing observer is dropped; training does not depend on it. `undo` is called when the worker
    refused the run, or was stopped, before it had planned it: nothing half-made is to stay.

    Args:
        run: whose lock the caller holds.
        lock: the lock's descriptor, inherited by the worker.
        argv: the worker's command line.
        observe: called with each new event, in order.
        alerts: what there is to know before it starts.
        undo: takes back what the caller changed on disk for this start.
        start: makes a worker of its command line.
        signals: the caller's, who has more to do than this run, and hears them before and after.
        trackers: names of those that get the run's figures, from a process of their own.

    Returns:
        DONE, INTERRUPTED or TERMINATED: the ends that leave a complete state.

    Raises:
        DpoError: every other end, with what to do about it.
    """
    while run.take_request():  # what an earlier worker died without taking
        pass
    stream = _Stream(run, observe)
    side = Trackers(run, trackers)
    with explain_disk_errors(run.path):
        drop_torn_tail(run.events_path)
        descriptor = open_for_appending(run.worker_log_path)
        _append(run, *alerts)
    relay = contextlib.nullcontext(signals) if signals else SignalRelay()
    with open(descriptor, "ab") as log, relay as signals:
        log_start = log.tell()
        worker = start(argv, log.fileno(), lock)
        signals.attach(worker)
        _append_beside(run, side.start())
        told_stopping = False
        while not _has_ended(worker):
            _append_beside(run, side.look())
            stream.follow()
            if signals.interrupts and not told_stopping:
                told_stopping = True
                stream.show(_STOPPING)
        returncode = worker.returncode or 0
        if not run.path.is_dir():
            side.drop()
            raise _gone(run)
        _append_end(run, returncode)
        stream.follow()
        if stream.is_under_way:
            _let_finish(run, side, stream, signals)
        else:
            side.drop()

    died_of_ours = signals.killed(returncode)
    code = died_of_ours or _SAVED.get(returncode)
    if stream.ending is not None and (returncode == ExitCode.DONE or stream.lost):
        code = stream.ending
    is_stopped = code in (ExitCode.INTERRUPTED, ExitCode.TERMINATED)
    if not stream.is_under_way and (stream.failure or is_stopped):
        undo()
    if stream.failure:
        raise stream.failure.to_error()
    if returncode == ExitCode.NO_SPACE:  # too full even to say so in the stream
        raise no_space(run.path)
    if code is None and stream.lost:
        raise _lost(run, stream.lost)
    if code is None:
        raise _crash(run, returncode, _last_line(run, log_start))
    if died_of_ours or (is_stopped and not stream.is_under_way):
        raise _stopped_without_saving(run, code, stream.is_under_way)
    return code


def join(arguments: Sequence[str], observe: Observer) -> ExitCode:
    """Run this machine's ranks of a run that the first machine keeps, until they end.

    Args:
        arguments: of torchrun.
        observe: called with what there is to know meanwhile.

    Returns:
        DONE; INTERRUPTED or TERMINATED where this process was asked to stop, and did.

    Raises:
        DpoError: ranks of this machine were lost, or the machines did not meet.
    """
    command = ["-m", "dpo_cli.training.worker", "--join"]
    with tempfile.TemporaryDirectory(prefix="dpo-join-") as scratch, SignalRelay() as signals:
        stream = _Stream(RunDirectory(Path(scratch)), observe)
        agent = subprocess.Popen(
            agent_argv(Path(scratch), arguments, command),
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        signals.attach(agent)
        while not _has_ended(agent):
            stream.follow()
        stream.follow()
    remedy = "see what the first machine says; it goes on with dpo resume there, and with this here"
    if stream.failure:
        raise stream.failure.to_error()
    if stream.lost:
        first, *others = map(rank_ending, stream.lost)
        raise DpoError(first, remedy, others)
    code = signals.asked or _SAVED.get(agent.returncode)
    if code is None:
        raise DpoError(f"what runs the ranks of this machine {_exit(agent.returncode)}", remedy)
    return code


def detach(place: LockedDirectory, lock: int) -> int:
    """Split off a process that outlives the terminal, printing into the place's launcher.log.

    Like `os.fork`: returns the new process's id in the caller, whose descriptor `lock` then locks
    nothing, and 0 in the new process, which now holds the lock.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    with explain_disk_errors(place.path):
        log = open_for_appending(place.launcher_log_path)
    pid = os.fork()
    if pid:
        os.close(log)
        # A lock lives as long as any descriptor of it: the caller's must not outlive the training.
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, lock)
        os.close(null)
        return pid
    os.setsid()
    null = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((null, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    os.close(log)
    os.close(null)
    sign_lock(lock)
    return 0


class _Stream:
    """Follows the events from now on, remembers those that decide, and shows all of them."""

    def __init__(self, run: RunDirectory, observe: Observer) -> None:
        self._run = run
        self._observe: Observer | None = observe
        self._reader = EventReader(run.events_path)
        deque(self._reader.read_new(), maxlen=0)  # those of earlier starts
        self.is_under_way = False
        self.failure: Failed | None = None
        self.ending: ExitCode | None = None
        self.lost: list[RankEnded] = []

    def follow(self) -> None:
        """Take in what was appended since the last call."""
        for event in self._reader.read_new():
            match event:
                case WorkerStarted():  # the ranks were started again
                    self.ending, self.lost = None, []
                case Planned() | Resumed():
                    self.is_under_way = True
                case Failed():
                    self.failure = event
                case Completed():
                    self.ending = ExitCode.DONE
                case Stopped():
                    self.ending = _ASKED[event.reason]
                case RankEnded():
                    self.lost.append(event)
            self.show(event)

    def show(self, event: Event) -> None:
        """Let the observer see `event`, unless it was dropped."""
        if self._observe is None:
            return
        try:
            self._observe(event)
        except (Exception, SystemExit):  # rich leaves by SystemExit when a pipe is closed
            self._observe = None
            path = self._run.launcher_log_path
            with contextlib.suppress(OSError), open(open_for_appending(path), "a") as log:
                log.write("The screen failed and was dropped; training goes on.\n")
                traceback.print_exc(file=log)


def _has_ended(worker: Worker) -> bool:
    """Whether the worker has ended, waiting a moment for it.

    Not by `Popen.wait`, which looks twenty times a second.
    """
    if worker.poll() is None:
        time.sleep(_POLL_SECONDS)
    return worker.poll() is not None


def _append_end(run: RunDirectory, returncode: int) -> None:
    """Tell the stream how the worker ended; a disk that is full of its state may not take it."""
    number = max(0, -returncode)
    with contextlib.suppress(OSError):
        _append(run, WorkerEnded(exit_code=128 + number if number else returncode, signal=number))


def _append(run: RunDirectory, *events: Event) -> None:
    """Add to the stream while no worker lives."""
    if events:
        writer = EventWriter(run.events_path)
        for event in events:
            writer.append(event)
        writer.close()


def _append_beside(run: RunDirectory, alerts: Iterable[Alert]) -> None:
    """Add to the stream while a worker may live; a full disk may not take it."""
    for alert in alerts:
        with contextlib.suppress(OSError):
            writer = EventWriter(run.events_path, mend=False)
            writer.append(alert)
            writer.close()


def _let_finish(run: RunDirectory, side: Trackers, stream: _Stream, signals: SignalRelay) -> None:
    """Wait for the trackers, but not for long, and not for a user who asks to stop again."""
    heard = signals.interrupts, signals.asked
    for alert in side.finish(lambda: (signals.interrupts, signals.asked) == heard):
        _append_beside(run, [alert])
        stream.follow()


def _stopped_without_saving(run: RunDirectory, code: ExitCode, is_under_way: bool) -> DpoError:
    if is_under_way:
        error = DpoError("stopped at once, without saving", *_how_to_resume(run))
    else:
        error = DpoError("stopped before the run was planned: nothing was trained")
    error.exit_code = code
    return error


def _gone(run: RunDirectory) -> DpoError:
    return DpoError(
        f"{run.path} was removed, or moved, while it was trained in",
        "put it back and resume it; what is lost begins again: dpo train",
    )


def _crash(run: RunDirectory, returncode: int, last_line: str) -> DpoError:
    message = f"the worker {_exit(returncode)}"
    if returncode > 0 and last_line:
        message += f": {last_line}"
    remedy, state = _how_to_resume(run)
    return DpoError(message, remedy, [*state, f"what it printed is in {run.worker_log_path}"])


def _exit(returncode: int) -> str:
    if returncode < 0:
        return f"died of {death(-returncode)}"
    return f"ended unexpectedly with exit code {returncode}"


def _lost(run: RunDirectory, lost: Sequence[RankEnded]) -> DpoError:
    """Ranks were lost for good: the first one, and what became of the others."""
    first, *others = map(rank_ending, lost)
    remedy, state = _how_to_resume(run)
    log = f"what they printed is in {run.worker_log_path}"
    return DpoError(first, remedy, [*others, *state, log])


def _how_to_resume(run: RunDirectory) -> tuple[str, list[str]]:
    """The remedy after an end without saving, and what it goes back to."""
    checkpoint, passed_over = run.newest_verified()
    state = (
        f"the last good state is {checkpoint.name}, after optimizer step "
        f"{checkpoint.optimizer_step}"
        if checkpoint
        else "no state was saved yet: a resume begins at the first step"
    )
    return run.resume_hint, [*passed_over, state]


def _last_line(run: RunDirectory, start: int) -> str:
    """The last line in the worker's log at or after the byte `start` that is not blank."""
    with run.worker_log_path.open("rb") as log:
        end = log.seek(0, os.SEEK_END)
        log.seek(max(start, end - _LOG_TAIL_BYTES))
        lines = log.read().decode(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
