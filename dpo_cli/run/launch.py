"""Launcher: starts the worker, follows its event stream, relays signals, reports the outcome.

No torch is imported here. The worker runs in its own session, so that a Ctrl-C reaches only the
launcher, and holds the run's lock through an inherited descriptor.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from dpo_cli.errors import DpoError, ExitCode
from dpo_cli.files import open_for_appending
from dpo_cli.machine import require_processes
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
from dpo_cli.run.processes import (
    Starter,
    Worker,
    fork_detached,
    module_argv,
    start_child,
    start_worker,
)
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
    """Return the command line of the worker.

    Args:
        run: run directory.
        changes: differences between the planned profile and the current one, for the event stream.
        exact: let the worker refuse to resume if the results could differ in their last bits.
    """
    argv = module_argv("dpo_cli.training.worker", str(run.path))
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
        signals.detach()
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
    """Run this machine's ranks of a run whose directory is on the first machine.

    Args:
        arguments: of torchrun.
        observe: called with the events of this machine's agent.

    Returns:
        DONE; INTERRUPTED or TERMINATED if this process was asked to stop.

    Raises:
        DpoError: ranks of this machine were lost, or the machines could not connect.
        UsageError: this is Windows.
    """
    require_processes()
    command = module_argv("dpo_cli.training.worker", "--join")
    with tempfile.TemporaryDirectory(prefix="dpo-join-") as scratch, SignalRelay() as signals:
        stream = _Stream(RunDirectory(Path(scratch)), observe)
        agent = start_child(agent_argv(Path(scratch), arguments, command))
        signals.attach(agent)
        while not _has_ended(agent):
            stream.follow()
        stream.follow()
    remedy = (
        "Read the error on the first machine. To continue, run dpo resume there and this command"
        " here."
    )
    if stream.last.failure:
        raise stream.last.failure.to_error()
    if stream.last.lost:
        first, *others = map(rank_ending, stream.last.lost)
        raise DpoError(first, remedy, others)
    code = signals.sent.stop_code or SAVED_CODES.get(agent.returncode)
    if code is None:
        raise DpoError(f"the agent of this machine {exit_text(agent.returncode)}", remedy)
    return code


def detach(place: LockedDirectory, lock: int) -> int:
    """Fork a process that outlives the terminal; its output goes to launcher.log.

    Returns:
        As `os.fork`: in the caller the process id of the child, which now holds the lock alone; in
        the child 0.
    """
    with explain_disk_errors(place.path):
        log = open_for_appending(place.launcher_log_path)
    pid = fork_detached(log)
    if not pid:
        sign_lock(lock)
        return 0
    # A flock lasts until all its descriptors are closed: the caller must not hold the lock longer
    # than training. dup2 keeps the number valid, since the caller will close it.
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, lock)
    os.close(null)
    return pid


class _Stream:
    """Event stream from now on: reduced to `last`, and shown to the observer."""

    def __init__(self, run: RunDirectory, observe: Observer) -> None:
        self._run = run
        self._observe: Observer | None = observe
        self._reader = EventReader(run.events_path)
        deque(self._reader.read_new(), maxlen=0)  # events of earlier launches
        self.last = LastEvents()

    def follow(self) -> None:
        """Read the events that were appended since the last call."""
        for event in self._reader.read_new():
            self.last = self.last.after(event)
            self.show(event)

    def show(self, event: Event) -> None:
        if self._observe is None:
            return
        try:
            self._observe(event)
        except (Exception, SystemExit):  # rich leaves by SystemExit when a pipe is closed
            self._observe = None
            path = self._run.launcher_log_path
            with (
                contextlib.suppress(OSError),
                open(open_for_appending(path), "a", encoding="utf-8") as log,
            ):
                log.write("The display failed and was dropped; training continues.\n")
                traceback.print_exc(file=log)


def _has_ended(worker: Worker) -> bool:
    """Return True if the worker has ended, after a short wait.

    `Popen.wait` with a timeout would poll twenty times a second.
    """
    if worker.poll() is None:
        time.sleep(_POLL_SECONDS)
    return worker.poll() is not None


def _append_end(run: RunDirectory, returncode: int) -> None:
    number = max(0, -returncode)
    with contextlib.suppress(OSError):  # the disk may be full, often of the worker's checkpoint
        _append(run, WorkerEnded(exit_code=128 + number if number else returncode, signal=number))


def _append(run: RunDirectory, *events: Event) -> None:
    """Append events while no worker runs; mends a torn last line."""
    if events:
        writer = EventWriter(run.events_path)
        for event in events:
            writer.append(event)
        writer.close()


def _append_beside(run: RunDirectory, alerts: Iterable[Alert]) -> None:
    """Append alerts while a worker may run; do not remove a line that it is writing."""
    for alert in alerts:
        with contextlib.suppress(OSError):  # the disk may be full
            writer = EventWriter(run.events_path, mend=False)
            writer.append(alert)
            writer.close()


def _let_finish(
    run: RunDirectory, trackers: TrackerSupervisor, stream: _Stream, signals: SignalRelay
) -> None:
    """Wait for the trackers to send their last rows, until a time limit or another signal."""
    before = signals.sent
    for alert in trackers.finish(lambda: signals.sent == before):
        _append_beside(run, [alert])
        stream.follow()


def _gone(run: RunDirectory) -> DpoError:
    return DpoError(
        f"{run.path} was removed or moved during training",
        "Put it back and resume it. If it is lost, start again with dpo train.",
    )


def _last_line(run: RunDirectory, start: int) -> str:
    """Return the last line that is not blank in the worker's log, from byte `start` on."""
    with run.worker_log_path.open("rb") as log:
        end = log.seek(0, os.SEEK_END)
        log.seek(max(start, end - _LOG_TAIL_BYTES))
        lines = log.read().decode(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
