"""Group of processes that train one run together.

Each rank computes its share of an optimizer step. When the last forward of the step is done, all
gradients are summed as one flat tensor, in an order that depends on the number of ranks alone.
Ranks therefore hold the same weights bit for bit, and a resumed run repeats them.

Phases without a known duration (reading and encoding data, a save to a slow disk) wait through the
key-value store, without a time limit: a rank that dies is noticed by its heartbeat or by the
process that started it. Only collectives have a limit, because a rank that hangs there would block
all others without a message.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from dpo_cli.distributed.network import interface_towards
from dpo_cli.errors import DpoError, ExitCode

T = TypeVar("T")

_POLL_SECONDS = 0.02
_BEAT_SECONDS = 0.5
SILENT_SECONDS = 120.0
"""Without a beat, and a rank is taken for lost; also one that is only just starting."""
_ENDED, _FAILED, _LEFT, _LOST = "ended", "failed", "left", "lost"
STOPS = frozenset({"interrupted", "terminated"})
MAY_SAVE = "may_save"
RENDEZVOUS_ID = "DPO_MEETING"
"""The variable in which our agent tells its ranks that their store is new. Of torchrun's own it
keeps what ranks said in it that were lost; machines number their restarts each for itself."""
_REQUESTS = (*sorted(STOPS), "save", "evaluate", MAY_SAVE)


class StartCancelledError(Exception):
    """A rank was asked to stop before the first step, and all leave with it."""


class RankLostError(Exception):
    """Another rank is gone or hangs, and said no reason: all end, and may be started again."""


@dataclass(eq=False)
class ProcessGroup:
    """This process among those that train together; made by `alone` or `join`.

    Attributes:
        rank: this process's number.
        world_size: how many there are.
        local_rank, local_world_size: the same on this machine alone.
        leader: the rank that holds the run directory, and is the only one to write there.
        hosts: the machine of each rank.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    main_rank: int = 0
    hosts: Sequence[str] = ()
    _store: Store | None = None
    _meetings: int = field(default=0, init=False)

    @property
    def is_main(self) -> bool:
        """Whether this rank writes the run directory."""
        return self.rank == self.main_rank

    # --- coming together -------------------------------------------------------------------------

    @classmethod
    def from_env(cls) -> ProcessGroup:
        """The ranks that the environment speaks of, as torchrun sets it; alone without it.

        Raises:
            DpoError: the environment is incomplete, or the others cannot be reached.
        """
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return cls()
        try:
            store, rank, size = next(rendezvous("env://"))
        except (ValueError, RuntimeError) as error:  # RuntimeError: torch's own DistError
            raise DpoError(
                f"the other ranks cannot be reached: {str(error).splitlines()[0]}",
                "RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT are set by torchrun; `dpo check`"
                " tries them",
            ) from error
        meeting = os.environ.get(RENDEZVOUS_ID) or os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        store = PrefixStore(meeting, store)
        group = cls(
            rank=rank,
            world_size=size,
            local_rank=int(os.environ.get("LOCAL_RANK", rank)),
            local_world_size=int(os.environ.get("LOCAL_WORLD_SIZE", size)),
            _store=store,
        )
        threading.Thread(target=group._beat, args=(store,), daemon=True).start()
        return group

    def agree_on_run(self, run: str | None) -> str:
        """Learn who the others are, and which run is trained: the one that one of them was given.

        Returns:
            The run's directory.

        Raises:
            DpoError: none of them was given a run, or two were given different ones.
        """
        if run is not None and self._store is None:
            return run
        own = run and os.path.abspath(run)  # other ranks may stand in another directory
        told = self.all_gather_object("introduction", [own, socket.gethostname()])
        self.hosts = tuple(host for _, host in told)
        runs = {run for run, _ in told if run is not None}
        if len(runs) != 1:
            raise DpoError(
                f"these {self.world_size} ranks were given {len(runs)} runs",
                "start them all by one `dpo train`, or each by the same torchrun",
                sorted(runs),
            )
        self.main_rank = next(rank for rank, (run, _) in enumerate(told) if run is not None)
        return run or cast(str, runs.pop())

    def init_collectives(self, device: torch.device, timeout_seconds: float) -> None:
        """Make ready for sums of tensors on `device` and on the CPU."""
        if self._store is None:
            return
        if interface := interface_towards(os.environ["MASTER_ADDR"]):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
        backend = "gloo"
        if device.type == "cuda":
            torch.cuda.set_device(device)
            backend = "cpu:gloo,cuda:nccl"
        with self._meeting("the others"):
            dist.init_process_group(
                backend,
                store=PrefixStore("sums", self._store),
                rank=self.rank,
                world_size=self.world_size,
                timeout=timedelta(seconds=timeout_seconds),
            )

    # --- waiting without a limit -----------------------------------------------------------------

    def all_gather_object(
        self, stage: str, value: Any, among: Sequence[int] | None = None
    ) -> list[Any]:
        """What ranks have to say at a stage of the run, in their order; plain values.

        Args:
            stage: a name that is used once.
            value: this rank's.
            among: the ranks that come to this stage, this one too; None for all.

        Raises:
            DpoError, StartCancelledError, RankLostError: one of them goes no further.
        """
        if self._store is None:
            return [value]
        self._store.set(f"{stage}/{self.rank}", json.dumps(value))
        ranks = range(self.world_size) if among is None else among
        return [self._wait_for(f"{stage}/{rank}", rank) for rank in ranks]

    def all_gather_object_on_host(self, stage: str, value: Any) -> list[Any]:
        """The same among the ranks on this machine; see `share_here`."""
        return self.all_gather_object(stage, value, self._ranks_here)

    @property
    def host_rank_and_size(self) -> tuple[int, int]:
        """This rank's number among those on this machine, and how many they are."""
        return self._ranks_here.index(self.rank), len(self._ranks_here)

    @property
    def _ranks_here(self) -> list[int]:
        if self._store is None:
            return [0]
        return [rank for rank, host in enumerate(self.hosts) if host == self.hosts[self.rank]]

    def main_process_first(self, stage: str, work: Callable[[], T]) -> T:
        """Do something on the leader, and once that is done on the others."""
        if self._store is None:
            return work()
        if not self.is_main:
            self._wait_for(stage, self.main_rank)
        result = work()
        if self.is_main:
            self._store.set(stage, json.dumps(None))
        return result

    def broadcast_from_main(self, stage: str, work: Callable[[], Any]) -> Any:
        """What the leader alone finds out or does, as plain values, told to all."""
        if self._store is None:
            return work()
        if self.is_main:
            self._store.set(stage, json.dumps(work()))
        return self._wait_for(stage, self.main_rank)

    def _wait_for(self, key: str, rank: int) -> Any:
        """What `rank` tells under a key, however long that takes, unless one goes no further.

        Raises:
            StartCancelledError: it was asked to stop.
            DpoError: on the leader: why another rank failed.
            RankLostError: on the others: the leader tells why; or that rank is gone without a word.
        """
        assert self._store is not None
        beats, look_at = -1, time.monotonic()
        while True:
            # Asked for first: the leader ends the run right after its last word.
            is_told = self.is_end_known()
            if self._store.check([key]):
                return json.loads(self._store.get(key))
            if self._store.check([_LEFT]):
                raise StartCancelledError
            if is_told:
                raise (self.is_main and self.reported_failure()) or RankLostError("the run ended")
            if self._store.check([_LOST]):
                raise RankLostError(self._store.get(_LOST).decode())
            if time.monotonic() >= look_at:
                before, beats = beats, self._read("beats").get(rank, 0)
                look_at = time.monotonic() + SILENT_SECONDS
                if rank != self.rank and beats == before:
                    raise RankLostError(f"{self._named(rank)} is stopped, or gone")
            time.sleep(_POLL_SECONDS)

    # --- sums ------------------------------------------------------------------------------------

    def all_reduce_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Add up the gradients of all ranks; one that has none of a parameter adds nothing.

        In place, as one flat tensor: any order of smaller ones would have to be the same in each
        step, on each rank, and after a resume.
        """
        if self._store is None:
            return
        flat = torch.cat(
            [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters]
        )
        with self._meeting("their gradients"):
            if flat.is_cuda:
                # NCCL waits on the card, where no limit of time could name who is missing.
                dist.all_reduce(torch.zeros(1))
            dist.all_reduce(flat)
        pieces = torch.split(flat, [p.numel() for p in parameters])
        for parameter, gradient in zip(parameters, pieces, strict=True):
            parameter.grad = gradient.view_as(parameter)

    def all_reduce_sum(self, values: Sequence[float]) -> list[float]:
        """The sums over all ranks, in float64, of numbers that each rank has as many of."""
        if self._store is None:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        with self._meeting("their figures"):
            dist.all_reduce(total)
        return cast(list[float], total.tolist())

    def all_reduce_max(self, tensor: Tensor) -> Tensor:
        """(...), the largest of all ranks' values at each place; in place."""
        if self._store is not None:
            with self._meeting("what they know"):
                dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return tensor

    def all_reduce_requests(self, asked: set[str]) -> set[str]:
        """What any rank says of: `STOPS`, "save", "evaluate", `MAY_SAVE`."""
        if self._store is None:
            return asked
        flags = self.all_reduce_sum([float(request in asked) for request in _REQUESTS])
        return {request for request, flag in zip(_REQUESTS, flags, strict=True) if flag}

    def broadcast_tensors(self, tensors: Iterable[Tensor]) -> None:
        """Make tensors, of the same shapes on all ranks, the leader's; in place."""
        if self._store is None:
            return
        with self._meeting("the state"):
            for tensor in tensors:
                dist.broadcast(tensor, self.main_rank)

    def all_gather(self, tensor: Tensor) -> list[Tensor]:
        """A small tensor of each rank, of the same shape, by rank."""
        if self._store is None:
            return [tensor]
        tensors = [torch.empty_like(tensor) for _ in range(self.world_size)]
        with self._meeting("their tensors"):
            dist.all_gather(tensors, tensor)
        return tensors

    def require_same(self, what: str, tensors: Iterable[Tensor]) -> None:
        """Refuse to go on where ranks hold different float32 tensors.

        Equal sums of equal numbers stay equal, unless a machine computes differently.

        Raises:
            DpoError: naming the ranks that differ from the leader.
        """
        if self._store is None:
            return
        # As integers, of which any flipped bit alters the sum, in whatever order it is made.
        sums = torch.stack([tensor.view(torch.int32).sum(dtype=torch.int64) for tensor in tensors])
        every = self.all_gather(sums.cpu())
        other = [
            f"rank {rank} on {self.hosts[rank]}"
            for rank, its in enumerate(every)
            if not its.equal(every[self.main_rank])
        ]
        if other:
            raise DpoError(
                f"{what} of these ranks are no longer the leader's",
                "train on machines of one kind, with the same versions; resume goes back to the"
                " last state, which is whole",
                other,
            )

    # --- the end ---------------------------------------------------------------------------------

    def cancel_start(self) -> None:
        """Take all others along, before the first step."""
        if self._store is not None:
            self._store.set(_LEFT, "1")

    def report_failure(self, error: DpoError) -> None:
        """Tell the leader why this rank ends; it tells the world."""
        failure = {"rank": self.rank, **error.to_dict()}
        with contextlib.suppress(RuntimeError):
            if self._store is not None:
                self._store.set(_FAILED, json.dumps(failure))

    def report_end(self) -> None:
        """The leader has told how the run ended; the others need not."""
        if self._store is not None:
            with contextlib.suppress(RuntimeError):
                self._store.set(_ENDED, "1")

    def is_end_known(self) -> bool:
        """Whether it is known why the others are gone: what they said, they said before."""
        with contextlib.suppress(RuntimeError):  # the store is gone, and with it what was told
            if self._store is not None:
                return any(self._store.check([word]) for word in (_ENDED, _FAILED))
        return False

    def reported_failure(self) -> DpoError | None:
        """Why another rank has ended, if it has said so."""
        with contextlib.suppress(RuntimeError):
            if self._store is not None and self._store.check([_FAILED]):
                told = json.loads(self._store.get(_FAILED))
                message = f"{self._named(told['rank'])}: {told['message']}"
                return DpoError.from_dict({**told, "message": message})
        return None

    def record_exit(self, message: str) -> ExitCode:
        """Say why this rank ends to torchrun, which may start all of them again.

        Those who wait for it learn so, and end, too.
        """
        print(message, file=sys.stderr, flush=True)
        with contextlib.suppress(RuntimeError):
            if self._store is not None and not self._store.check([_LOST]):
                self._store.set(_LOST, f"{self._named(self.rank)} is gone: {message}")
        if (path := os.environ.get("TORCHELASTIC_ERROR_FILE")) is not None:
            word = {"message": message, "extraInfo": {"timestamp": str(int(time.time()))}}
            with contextlib.suppress(OSError):
                Path(path).write_text(json.dumps({"message": word}), encoding="utf-8")
        return ExitCode.FAILED

    def destroy(self) -> None:
        """Part; all ranks are done."""
        if dist.is_initialized():
            dist.destroy_process_group()

    # --- who is missing --------------------------------------------------------------------------

    @contextlib.contextmanager
    def _meeting(self, what: str) -> Iterator[None]:
        """Around what all ranks do together: an error of torch's becomes one that names the rank.

        Raises:
            RankLostError: another rank is gone, or did not come in time.
        """
        assert self._store is not None
        self._meetings += 1
        began = time.monotonic()
        try:
            self._store.set(f"meetings/{self.rank}", str(self._meetings))
            yield
        except RuntimeError as error:
            waited = time.monotonic() - began
            raise RankLostError(
                f"rank {self.rank} waited {waited:.0f} s for {what}: {self._who_is_missing()}"
                f" ({str(error).splitlines()[0]})"
            ) from error

    def _who_is_missing(self) -> str:
        """The ranks that no longer beat, else those that are not where this one is."""
        before = self._read("beats")
        time.sleep(3 * _BEAT_SECONDS)
        now, meetings = self._read("beats"), self._read("meetings")
        silent = [rank for rank, beats in now.items() if beats == before.get(rank)]
        late = [rank for rank, done in meetings.items() if done < self._meetings]
        why = "is stopped, or gone" if silent else "did not come, and hangs"
        named = [self._named(rank) for rank in silent or late]
        return f"{', '.join(named)} {why}" if named else "no rank can be named"

    def _named(self, rank: int) -> str:
        return f"rank {rank} on {self.hosts[rank]}" if self.hosts else f"rank {rank}"

    def _read(self, counter: str) -> dict[int, int]:
        """A counter of each other rank that has one."""
        counts = {}
        with contextlib.suppress(RuntimeError):
            for rank in range(self.world_size):
                key = f"{counter}/{rank}"
                if rank != self.rank and self._store is not None and self._store.check([key]):
                    counts[rank] = int(self._store.get(key))
        return counts

    def _beat(self, store: Store) -> None:
        """Show that this process runs, whatever it computes."""
        with contextlib.suppress(RuntimeError):  # the store is gone: so are the others
            while True:
                store.add(f"beats/{self.rank}", 1)
                time.sleep(_BEAT_SECONDS)


SINGLE_PROCESS = ProcessGroup()
"""One process that trains by itself."""
