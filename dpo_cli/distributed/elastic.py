"""Torchrun's agent, which also tells how each rank ended that failed.

Where one fails, torchrun asks the others to stop, gives them half a minute, and says so in its log.
Ours lets the others notice by themselves what they lost, which is then in their last words, ends
after a few seconds those that hang, and appends a `RankEnded` for each that failed.
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

from dpo_cli.distributed.agent import Relay
from dpo_cli.distributed.process_group import RENDEZVOUS_ID
from dpo_cli.errors import DpoError, ExitCode, UsageError
from dpo_cli.run.directory import RunDirectory
from dpo_cli.run.events import (
    Alert,
    Completed,
    Event,
    EventReader,
    EventWriter,
    Failed,
    RankEnded,
    Stopped,
    WorkerStarted,
)
from dpo_cli.run.exit_reason import rank_ending

_GRACE_SECONDS = 5.0
"""For the other ranks to notice that one was lost, and to end by themselves."""
_LOOK_SECONDS = 0.05


def run_ranks(path: Path, arguments: Sequence[str], relay: Relay) -> int:
    """Run a command line of torchrun to its end; the exit code of this process.

    Args:
        path: of the run; its event stream is written here while no rank of this machine lives.
        arguments: of torchrun, with what it is to run.
        relay: of signals.
    """
    ledger = _Ledger(path)
    launcher_api.LocalElasticAgent = functools.partial(  # type: ignore[attr-defined, assignment]
        _Agent, relay=relay, ledger=ledger
    )  # torchrun lets nobody choose its agent
    try:
        options = _parse(arguments)
        processes = torchrun.determine_local_world_size(options.nproc_per_node)
        cores = len(os.sched_getaffinity(0))
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // processes)))
        with tempfile.TemporaryDirectory(prefix="dpo-ranks-") as logs:
            options.log_dir = options.log_dir or logs
            torchrun.run(options)  # type: ignore[no-untyped-call]
    except ChildFailedError as error:
        codes = {failure.exitcode for failure in error.failures.values()}
        heard = relay.heard and -relay.heard
        if heard in codes and codes <= {heard, -signal.SIGKILL}:
            relay.die()  # they did not listen yet
        return ExitCode.FAILED
    except SignalException:
        relay.die()
    except RendezvousTimeoutError:
        return ledger.tell_failure(_nobody_came(options.rdzv_endpoint, options.nnodes))
    except (RendezvousConnectionError, RendezvousClosedError) as error:
        return ledger.tell_failure(_no_meeting(options.rdzv_endpoint, error))
    except DpoError as error:
        return ledger.tell_failure(error)
    return ExitCode.DONE


class _Ledger:
    """The event stream of the run, as far as the agent reads and writes it."""

    def __init__(self, path: Path) -> None:
        self._path = RunDirectory(path).events_path
        self._reader = EventReader(self._path)
        self._told: Event | None = None
        self.is_told()

    def is_told(self) -> bool:
        """Whether the leader said how the run ended, since it was last started."""
        for event in self._reader.read_new():
            if isinstance(event, Completed | Stopped | Failed):
                self._told = event
            elif isinstance(event, WorkerStarted):
                self._told = None
        return self._told is not None

    def append(self, *events: Event) -> None:
        """Write events, as long as no rank lives that could."""
        with contextlib.suppress(OSError):  # a full disk may be why they failed
            writer = EventWriter(self._path)
            for event in events:
                writer.append(event)
            writer.close()

    def tell_failure(self, error: DpoError) -> int:
        """Say why there was no training; the exit code."""
        self.append(Failed.from_error(error))
        return error.exit_code


class _Agent(LocalElasticAgent):
    def __init__(self, *arguments: Any, relay: Relay, ledger: _Ledger, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self._relay = relay
        self._ledger = ledger

    def _rendezvous(self, worker_group: WorkerGroup) -> None:
        # Else torchrun keeps the ranks' first store, with all that was said in it, and those that
        # start again take it for their own; or it lies on a machine that is gone.
        handler: Any = worker_group.spec.rdzv_handler
        if handler.get_backend() != "static":
            handler._bootstrap_store_info = handler._shared_tcp_store_server = None
            os.environ[RENDEZVOUS_ID] = handler.get_run_id()
        super()._rendezvous(worker_group)

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        self._relay.expect_ranks()
        pids: dict[int, Any] = super()._start_workers(worker_group)
        self._relay.attach(pids.values())
        self._running = dict(pids)
        self._has_failed = False
        return pids

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        order, killed = self._let_all_end()
        result: RunResult = super()._monitor_workers(worker_group)
        if result.is_failed():
            self._relay.detach()
            failures = {f.local_rank: (rank, f) for rank, f in result.failures.items()}
            lost = [_rank_ended(*failures[n]) for n in order if n in failures and n not in killed]
            if self._relay.heard or self._ledger.is_told():
                self._remaining_restarts = 0
            self._ledger.append(*lost, *self._restarting(lost))
        return result

    def _shutdown(self, *arguments: Any, **settings: Any) -> None:
        # Of torchrun's own half minute for what hangs in a sum with a machine that is gone.
        super()._shutdown(*arguments, **{**settings, "timeout": int(_GRACE_SECONDS)})

    def _let_all_end(self) -> tuple[list[int], set[int]]:
        """If a rank has failed, wait until none runs.

        Returns:
            The local ranks in the order of their ends, and those that had to be killed.
        """
        order = self._ended()
        killed: set[int] = set()
        deadline = time.monotonic() + _GRACE_SECONDS
        while self._has_failed and self._running:
            if time.monotonic() > deadline:
                if killed:
                    break  # not even that ends a process which hangs in the kernel
                killed = set(self._running)
                for pid in self._running.values():
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(pid, signal.SIGKILL)  # each has a session of its own
                deadline = time.monotonic() + _GRACE_SECONDS
            time.sleep(_LOOK_SECONDS)
            order += self._ended()
        return order, killed

    def _ended(self) -> list[int]:
        """The local ranks that have ended since the last look; torchrun waits for them later.

        First those that a signal ended: one that misses another leaves by itself.
        """
        ended: list[tuple[bool, int]] = []
        for local_rank, pid in list(self._running.items()):
            state = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if state is not None:
                del self._running[local_rank]
                ended.append((state.si_code == os.CLD_EXITED, local_rank))
                self._has_failed |= state.si_status != 0
        return [local_rank for _, local_rank in sorted(ended)]

    def _restarting(self, lost: Sequence[RankEnded]) -> list[Event]:
        """What there is to know while all ranks are started again."""
        restarts = self._worker_group.spec.max_restarts
        if not lost or not self._remaining_restarts:
            return []
        number = restarts - self._remaining_restarts + 1
        return [
            Alert(
                code="rank-lost",
                message=f"{rank_ending(lost[0])}; all ranks start again from the newest whole state"
                f" (restart {number} of {restarts})",
            )
        ]


def _rank_ended(rank: int, failure: ProcessFailure) -> RankEnded:
    message = failure.message
    text = message.get("message", "") if isinstance(message, dict) else ""  # else torchrun's own
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
    """Torchrun's options.

    Raises:
        UsageError: it does not know them.
    """
    output = io.StringIO()
    try:
        with contextlib.redirect_stderr(output):
            return torchrun.parse_args(arguments)  # type: ignore[no-untyped-call]
    except SystemExit as error:
        complaint = (output.getvalue().splitlines() or ["no arguments"])[-1]
        raise UsageError(
            f"torchrun refuses its arguments: {complaint.partition('error: ')[2] or complaint}",
            "see torchrun --help; what stands behind the -- of the command line goes there",
        ) from error


def _nobody_came(endpoint: str, nnodes: str) -> DpoError:
    return DpoError(
        f"launch.nnodes = {nnodes}: not all machines came to {endpoint}",
        "start each of them: the same profile, with its own --set launch.node_rank=N",
    )


def _no_meeting(endpoint: str, error: Exception) -> DpoError:
    cause = error.__cause__ or error
    return DpoError(
        f"launch.rdzv_endpoint = {endpoint!r}: no meeting there",
        "is the first machine (launch.node_rank = 0) started, and its port free and reachable?",
        [str(cause).splitlines()[0] if str(cause) else type(cause).__name__],
    )
