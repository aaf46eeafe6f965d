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
from dpo_cli.run.disk import explain_disk_errors
from dpo_cli.run.event_writer import EventWriter, drop_torn_tail
from dpo_cli.run.events import Alert, Event, EventReader, WorkerEnded
from dpo_cli.run.exit_reason import exit_text, rank_ending
from dpo_cli.run.locked_directory import LockedDirectory, sign_lock
from dpo_cli.run.outcome import (
    SAVED_CODES,
    End,
    LastEvents,
    error_of,
    outcome_of,
)
from dpo_cli.run.processes import Starter, Worker, start_worker
from dpo_cli.run.signals import SignalRelay
from dpo_cli.run.torchrun import agent_argv
from dpo_cli.run.tracking.supervisor import TrackerSupervisor

Observer = Callable[[Event], None]

_POLL_SECONDS = 0.2
_LOG_TAIL_BYTES = 8192
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


class Launcher:
    """One launch of a run: starts the worker, follows its event stream, waits for its end.

    The worker may also be the agent over several ranks (`dpo_cli.distributed.agent`).

    Args:
        run: the run directory; the caller holds its lock.
        lock: descriptor of that lock. The worker inherits it, so that the run stays locked while
            any process trains.
        argv: command line of the worker.
        observe: called with each new event, in order. An observer that raises is dropped: training
            must not depend on a screen.
        alerts: appended to the event stream before the worker starts.
        trackers: names of the trackers, which run in a process of their own.
        undo: takes back the changes on disk that the caller made for this launch. It is called if
            the run was refused or stopped before it was planned, and never afterwards.
        start: starts the worker.
        signals: relay of a caller that trains several runs and handles signals between them, too.
            By default signals are relayed while `run` runs.
    """

    def __init__(
        self,
        run: RunDirectory,
        lock: int,
        argv: Sequence[str],
        *,
        observe: Observer,
        alerts: Sequence[Alert] = (),
        trackers: Sequence[str] = (),
        undo: Callable[[], None] = lambda: None,
        start: Starter = start_worker,
        signals: SignalRelay | None = None,
    ) -> None:
        self._run = run
        self._lock = lock
        self._argv = argv
        self._observe = observe
        self._alerts = alerts
        self._trackers = trackers
        self._undo = undo
        self._start = start
        self._signals = signals

    def run(self) -> ExitCode:
        """Train until the worker ends.

        Returns:
            DONE, INTERRUPTED or TERMINATED: the ends that leave a complete checkpoint.

        Raises:
            DpoError: for every other end.
        """
        run = self._run
        while run.take_request():  # left over from a worker that died before it could take it
            pass
        # The stream is opened before anything is appended, so that the observer sees all events of
        # this launch and none of an earlier one.
        stream = _Stream(run, self._observe)
        with explain_disk_errors(run.path):
            drop_torn_tail(run.events_path)
            descriptor = open_for_appending(run.worker_log_path)
            _append(run, *self._alerts)
        relay = contextlib.nullcontext(self._signals) if self._signals else SignalRelay()
        with open(descriptor, "ab") as log, relay as signals:
            log_start = log.tell()
            returncode = self._supervise(log.fileno(), stream, signals)
        last = stream.last
        outcome = outcome_of(returncode, signals.sent, last)
        if outcome.undo:
            self._undo()
        if outcome.end is End.SAVED:
            return outcome.code
        # Only a crash needs the log, and the other ends may have removed it with the run.
        last_line = _last_line(run, log_start) if outcome.end is End.CRASHED else ""
        raise error_of(outcome, last, run, returncode, last_line)

    def _supervise(self, log: int, stream: _Stream, signals: SignalRelay) -> int:
        """Start the worker and its trackers, wait for both, and return the worker's code."""
        run = self._run
        trackers = TrackerSupervisor(run, self._trackers)
        worker = self._start(self._argv, log, self._lock)
        # Signals that came while the worker was started are sent now.
        signals.attach(worker)
        _append_beside(run, trackers.start())
        told_stopping = False
        while not _has_ended(worker):
            _append_beside(run, trackers.look())
            stream.follow()
            if signals.sent.interrupts and not told_stopping:
                told_stopping = True
                stream.show(_STOPPING)
        returncode = worker.returncode or 0
        if not run.path.is_dir():
            trackers.drop()
            raise _gone(run)
        _append_end(run, returncode)
        stream.follow()
        if stream.last.under_way:
            _let_finish(run, trackers, stream, signals)
        else:
            trackers.drop()  # `undo` may remove the run: nothing of it must be sent
        return returncode


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
    if stream.last.failure:
        raise stream.last.failure.to_error()
    if stream.last.lost:
        first, *others = map(rank_ending, stream.last.lost)
        raise DpoError(first, remedy, others)
    code = signals.sent.stop_code or SAVED_CODES.get(agent.returncode)
    if code is None:
        raise DpoError(f"what runs the ranks of this machine {exit_text(agent.returncode)}", remedy)
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
        self.last = LastEvents()

    def follow(self) -> None:
        """Take in what was appended since the last call."""
        for event in self._reader.read_new():
            self.last = self.last.after(event)
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


def _let_finish(
    run: RunDirectory, trackers: TrackerSupervisor, stream: _Stream, signals: SignalRelay
) -> None:
    """Wait for the trackers, but not for long, and not for a user who asks to stop again."""
    heard = signals.sent
    for alert in trackers.finish(lambda: signals.sent == heard):
        _append_beside(run, [alert])
        stream.follow()


def _gone(run: RunDirectory) -> DpoError:
    return DpoError(
        f"{run.path} was removed, or moved, while it was trained in",
        "put it back and resume it; what is lost begins again: dpo train",
    )


def _last_line(run: RunDirectory, start: int) -> str:
    """The last line in the worker's log at or after the byte `start` that is not blank."""
    with run.worker_log_path.open("rb") as log:
        end = log.seek(0, os.SEEK_END)
        log.seek(max(start, end - _LOG_TAIL_BYTES))
        lines = log.read().decode(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
