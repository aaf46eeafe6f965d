"""Torchrun's agent, extended to record how each failed rank ended.

If a rank fails, torchrun asks the other ranks to stop, waits half a minute and writes to its log.
This agent lets the other ranks notice the loss themselves, so that their error messages name the
lost rank. It kills ranks that hang after a few seconds, and appends a `RankEnded` for each failed
rank.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import signal
import socket
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch.distributed.launcher.api as launcher_api
from torch.distributed import run as torchrun
from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.elastic.rendezvous import (
    RendezvousClosedError,
    RendezvousConnectionError,
    RendezvousTimeoutError,
)

from dpo_cli.compute.threads import usable_cores
from dpo_cli.distributed.rendezvous import STORE_PREFIX
from dpo_cli.distributed.signal_relay import RankSignalRelay
from dpo_cli.errors import DpoError, ExitCode, UsageError, first_line
from dpo_cli.run.directory import RunDirectory
from dpo_cli.run.event_writer import EventWriter
from dpo_cli.run.events import (
    Alert,
    Completed,
    Event,
    EventReader,
    Failed,
    RankEnded,
    Stopped,
    WorkerStarted,
)
from dpo_cli.run.exit_reason import rank_ending

_GRACE_SECONDS = 5.0
"""Time in which the other ranks notice a lost rank and end by themselves."""
_POLL_SECONDS = 0.05


def run_ranks(path: Path, arguments: Sequence[str], relay: RankSignalRelay) -> int:
    """Run a command line of torchrun until its ranks end; return the exit code of this process.

    Args:
        path: run directory. This process writes events only while no rank of this machine runs.
        arguments: of torchrun, with the command that each rank runs.
        relay: relays signals to the ranks.
    """
    events = _RunEvents(path)
    launcher_api.LocalElasticAgent = functools.partial(  # type: ignore[attr-defined, assignment]
        _Agent, relay=relay, events=events
    )  # torchrun has no option for the agent's class
    try:
        options = _parse(arguments)
        processes = torchrun.determine_local_world_size(options.nproc_per_node)
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, usable_cores() // processes)))
        with tempfile.TemporaryDirectory(prefix="dpo-ranks-") as logs:
            options.log_dir = options.log_dir or logs
            torchrun.run(options)  # type: ignore[no-untyped-call]
    except ChildFailedError as error:
        codes = {failure.exitcode for failure in error.failures.values()}
        death = relay.received and -relay.received
        # All ranks died of the relayed signal (or of the kill that followed): they had not yet
        # installed their handlers. Ending by that signal shows the launcher that nothing was lost.
        if death in codes and codes <= {death, -signal.SIGKILL}:
            relay.die()
        return ExitCode.FAILED
    except SignalException:
        relay.die()
    except RendezvousTimeoutError:
        return events.report_failure(_missing_machines_error(options.rdzv_endpoint, options.nnodes))
    except (RendezvousConnectionError, RendezvousClosedError) as error:
        return events.report_failure(_rendezvous_error(options.rdzv_endpoint, error))
    except DpoError as error:
        return events.report_failure(error)
    return ExitCode.DONE


class _RunEvents:
    """Event stream of the run, as far as the agent reads and writes it."""

    def __init__(self, path: Path) -> None:
        self._path = RunDirectory(path).events_path
        self._reader = EventReader(self._path)
        self._end: Event | None = None
        self.has_end()  # skips the events of earlier launches

    def has_end(self) -> bool:
        """Return True if the main rank has recorded the end of the run since its last start."""
        for event in self._reader.read_new():
            if isinstance(event, Completed | Stopped | Failed):
                self._end = event
            elif isinstance(event, WorkerStarted):
                self._end = None
        return self._end is not None

    def append(self, *events: Event) -> None:
        """Append events, while no rank of this machine runs that could append, too."""
        with contextlib.suppress(OSError):  # a full disk may be the reason of the failure
            writer = EventWriter(self._path)
            for event in events:
                writer.append(event)
            writer.close()

    def report_failure(self, error: DpoError) -> int:
        """Append the error that prevented training; return its exit code."""
        self.append(Failed.from_error(error))
        return error.exit_code


class _Agent(LocalElasticAgent):
    """Torchrun's agent with our handling of failed ranks.

    It overrides private methods of one torch version; tests/distributed run it with real processes.
    """

    def __init__(
        self, *arguments: Any, relay: RankSignalRelay, events: _RunEvents, **settings: Any
    ) -> None:
        super().__init__(*arguments, **settings)
        self._relay = relay
        self._events = events

    def _rendezvous(self, worker_group: WorkerGroup) -> None:
        # Torchrun reuses the store of the first attempt. Restarted ranks would read the messages of
        # the lost ones there, and the machine that holds it may be gone. So forget it: the next
        # rendezvous makes a new one.
        handler: Any = worker_group.spec.rdzv_handler
        if handler.get_backend() != "static":
            handler._bootstrap_store_info = handler._shared_tcp_store_server = None
            os.environ[STORE_PREFIX] = handler.get_run_id()
        super()._rendezvous(worker_group)

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        self._relay.expect_ranks()
        pids: dict[int, Any] = super()._start_workers(worker_group)
        self._relay.attach(pids.values())
        self._running = dict(pids)
        self._has_failed = False
        return pids

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        # Torchrun's own check stops the other ranks as soon as one has failed. By then all have
        # ended here, with the error messages that they wrote.
        order, killed = self._let_all_end()
        result: RunResult = super()._monitor_workers(worker_group)
        if result.is_failed():
            self._relay.detach()
            failures = {f.local_rank: (rank, f) for rank, f in result.failures.items()}
            # A rank that was killed here hung because of another one: it is not a cause.
            lost = [_rank_ended(*failures[n]) for n in order if n in failures and n not in killed]
            if self._relay.received or self._events.has_end():
                self._remaining_restarts = 0  # the run is over, or the user wants it to stop
            self._events.append(*lost, *self._restart_alerts(lost))
        return result

    def _shutdown(self, *arguments: Any, **settings: Any) -> None:
        # Torchrun would wait 30 s for ranks that hang in a collective with a lost machine.
        super()._shutdown(*arguments, **{**settings, "timeout": int(_GRACE_SECONDS)})

    def _let_all_end(self) -> tuple[list[int], set[int]]:
        """Wait until no rank runs, if one has failed; else return at once.

        Returns:
            The local ranks in the order of their ends, and those that were killed here.
        """
        order = self._ended()
        killed: set[int] = set()
        deadline = time.monotonic() + _GRACE_SECONDS
        while self._has_failed and self._running:
            if time.monotonic() > deadline:
                if killed:
                    break  # a process that hangs in the kernel survives even SIGKILL
                killed = set(self._running)
                for pid in self._running.values():
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(pid, signal.SIGKILL)  # each leads its own session
                deadline = time.monotonic() + _GRACE_SECONDS
            time.sleep(_POLL_SECONDS)
            order += self._ended()
        return order, killed

    def _ended(self) -> list[int]:
        """Return the local ranks that have ended since the last call.

        Ranks that died of a signal come first: they are the cause if both kinds ended at once,
        since a rank that misses another one exits by itself.
        """
        ended: list[tuple[bool, int]] = []
        for local_rank, pid in list(self._running.items()):
            # WNOWAIT leaves the zombie in place: torchrun itself must still reap it.
            state = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if state is not None:
                del self._running[local_rank]
                ended.append((state.si_code == os.CLD_EXITED, local_rank))
                self._has_failed |= state.si_status != 0
        return [local_rank for _, local_rank in sorted(ended)]

    def _restart_alerts(self, lost: Sequence[RankEnded]) -> list[Event]:
        restarts = self._worker_group.spec.max_restarts
        if not lost or not self._remaining_restarts:
            return []
        number = restarts - self._remaining_restarts + 1
        return [
            Alert(
                code="rank-lost",
                message=f"{rank_ending(lost[0])}; all ranks restart from the newest checkpoint"
                f" (restart {number} of {restarts})",
            )
        ]


def _rank_ended(rank: int, failure: ProcessFailure) -> RankEnded:
    message = failure.message
    text = (
        message.get("message", "") if isinstance(message, dict) else ""
    )  # a plain str is torchrun's text
    number = max(0, -failure.exitcode)
    return RankEnded(
        rank=rank,
        host=socket.gethostname(),
        pid=failure.pid,
        exit_code=128 + number if number else failure.exitcode,
        signal=number,
        message=text,
    )


def _parse(arguments: Sequence[str]) -> Any:
    """Parse torchrun's options.

    Raises:
        UsageError: with argparse's complaint, instead of its exit.
    """
    output = io.StringIO()
    try:
        with contextlib.redirect_stderr(output):
            return torchrun.parse_args(arguments)  # type: ignore[no-untyped-call]
    except SystemExit as error:
        complaint = (output.getvalue().splitlines() or ["no arguments"])[-1]
        raise UsageError(
            f"torchrun refuses its arguments: {complaint.partition('error: ')[2] or complaint}",
            "See torchrun --help; the arguments after -- go to torchrun.",
        ) from error


def _missing_machines_error(endpoint: str, nnodes: str) -> DpoError:
    return DpoError(
        f"launch.nnodes = {nnodes}: not all machines have connected to {endpoint}",
        "Start every machine with the same profile and its own --set launch.node_rank=N.",
    )


def _rendezvous_error(endpoint: str, error: Exception) -> DpoError:
    cause = error.__cause__ or error
    return DpoError(
        f"launch.rdzv_endpoint = {endpoint!r}: no rendezvous at this address",
        "Start the first machine (launch.node_rank = 0), and make sure that the port is free and"
        " reachable.",
        [first_line(cause)],
    )
