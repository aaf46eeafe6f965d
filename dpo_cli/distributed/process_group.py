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
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from dpo_cli.distributed import collectives, shards
from dpo_cli.distributed.rendezvous import (
    RankLostError,
    RankStore,
    StartCancelledError,
    connect,
)
from dpo_cli.errors import DpoError, ExitCode

__all__ = ["SINGLE_PROCESS", "ProcessGroup", "RankLostError", "StartCancelledError"]

T = TypeVar("T")

STOPS = frozenset({"interrupted", "terminated"})
MAY_SAVE = "may_save"
"""Request of the main rank: enough time has passed since the last checkpoint."""
_REQUESTS = (*sorted(STOPS), "save", "evaluate", MAY_SAVE)


class ProcessGroup:
    """All ranks of a run, as seen from this one.

    Without a store it is a single process, and every method returns at once.

    Args:
        store: shared by the ranks; None for a single process.
        world_size: number of ranks.
        local_rank: rank among the processes that one torchrun started on this machine.
    """

    def __init__(
        self, store: RankStore | None = None, world_size: int = 1, local_rank: int = 0
    ) -> None:
        self._store = store
        self.rank = store.rank if store else 0
        self.world_size = world_size
        self.local_rank = local_rank
        self._mesh: DeviceMesh | None = None
        self._gathers = 0

    @classmethod
    def from_env(cls) -> ProcessGroup:
        """Join the ranks that the environment names, as torchrun sets it.

        Raises:
            DpoError: the environment is incomplete, or the other ranks cannot be reached.
        """
        store = connect()
        if store is None:
            return cls()
        local_rank = int(os.environ.get("LOCAL_RANK", store.rank))
        return cls(store, int(os.environ["WORLD_SIZE"]), local_rank)

    @property
    def main_rank(self) -> int:
        """Rank that holds the run directory; no other rank writes there."""
        return self._store.main_rank if self._store else 0

    @property
    def is_main(self) -> bool:
        """True on the main rank."""
        return self.rank == self.main_rank

    @property
    def hosts(self) -> Sequence[str]:
        """Host name of each rank; empty for a single process."""
        return self._store.hosts if self._store else ()

    # --- start -----------------------------------------------------------------------------------

    def agree_on_run(self, run: str | None) -> str:
        """Exchange host names and the run directory, which one rank alone was given.

        That rank becomes the main rank.

        Raises:
            DpoError: no rank was given a run, or two ranks were given different ones.
        """
        if self._store is None and run is not None:
            return run
        # Absolute, because other ranks may have another working directory.
        own = run and os.path.abspath(run)
        members = self.all_gather_object("members", [own, socket.gethostname()])
        if self._store is not None:
            self._store.hosts = tuple(host for _, host in members)
        runs = {path for path, _ in members if path is not None}
        if len(runs) != 1:
            raise DpoError(
                f"these {self.world_size} ranks were given {len(runs)} runs",
                "Start all ranks by one `dpo train`, or all by one torchrun.",
                sorted(runs),
            )
        if self._store is not None:
            self._store.main_rank = next(rank for rank, (path, _) in enumerate(members) if path)
        return run or cast(str, runs.pop())

    def init_collectives(
        self, device: torch.device, timeout_seconds: float, *, shards_models: bool = False
    ) -> None:
        """Initialize torch.distributed for tensors on `device` and on the CPU.

        With `shards_models`, `shard` divides models among the ranks.

        Raises:
            DpoError: this version of torch is too old to shard.
        """
        if self._store is None:
            return
        with self._store.collective("the other ranks"):
            collectives.init(device, self._store.store, self.rank, self.world_size, timeout_seconds)
            if shards_models:
                hosts = self.hosts or [""] * self.world_size
                self._mesh = shards.make_mesh(hosts, device.type)

    # --- objects, through the store, without a time limit ----------------------------------------
    # All of these raise what `RankStore.wait_for` raises if a rank does not get so far.

    def all_gather_object(
        self, key: str, value: Any, among: Sequence[int] | None = None
    ) -> list[Any]:
        """Gather a plain value from each rank, in the order of the ranks.

        Args:
            key: a name that is used once.
            value: of this rank; anything that JSON takes.
            among: the ranks that call this, with this one; None for all.
        """
        if self._store is None:
            return [value]
        self._store.put(f"{key}/{self.rank}", value)
        ranks = range(self.world_size) if among is None else among
        return [self._store.wait_for(f"{key}/{rank}", rank) for rank in ranks]

    def all_gather_object_on_host(self, key: str, value: Any) -> list[Any]:
        """Gather a plain value from each rank on this machine; see `all_gather_object`."""
        return self.all_gather_object(key, value, self._ranks_on_host)

    @property
    def host_rank_and_size(self) -> tuple[int, int]:
        """Position of this rank among those on this machine, and their number.

        By host name, so that two torchruns on one machine count as one.
        """
        return self._ranks_on_host.index(self.rank), len(self._ranks_on_host)

    @property
    def _ranks_on_host(self) -> list[int]:
        if self._store is None:
            return [0]
        own = self.hosts[self.rank]
        return [rank for rank, host in enumerate(self.hosts) if host == own]

    def main_process_first(self, key: str, work: Callable[[], T]) -> T:
        """Call `work` on the main rank, and on the other ranks once it has returned there.

        For downloads and caches: the other ranks then find the result on the disk.
        """
        if self._store is None:
            return work()
        if not self.is_main:
            self._store.wait_for(key, self.main_rank)
        result = work()
        if self.is_main:
            self._store.put(key, None)
        return result

    def broadcast_from_main(self, key: str, work: Callable[[], Any]) -> Any:
        """Call `work` on the main rank alone, and return its plain result on all ranks."""
        if self._store is None:
            return work()
        if self.is_main:
            self._store.put(key, work())
        return self._store.wait_for(key, self.main_rank)

    # --- tensors, through torch.distributed, with a time limit -----------------------------------
    # All are collective: every rank calls them in one order. RankLostError if a rank is missing.

    def all_reduce_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Sum the gradients of all ranks in place; a missing gradient counts as zeros.

        The gradients of shards are summed in the backward pass already.
        """
        if self._store is not None and self._mesh is None:
            with self._store.collective("the gradients"):
                collectives.all_reduce_gradients(parameters)

    def all_reduce_sum(self, values: Sequence[float]) -> list[float]:
        """Sum numbers over all ranks, position by position, in float64."""
        if self._store is None:
            return list(values)
        with self._store.collective("the metrics"):
            return collectives.all_reduce_sum(values)

    def all_reduce_max(self, tensor: Tensor) -> Tensor:
        """Replace each element by its maximum over all ranks, in place; return `tensor`."""
        if self._store is not None:
            with self._store.collective("the reference log-probs"):
                dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return tensor

    def all_reduce_requests(self, requests: set[str]) -> set[str]:
        """Return the union of all ranks' requests: `STOPS`, "save", "evaluate", `MAY_SAVE`."""
        if self._store is None:
            return requests
        flags = self.all_reduce_sum([float(request in requests) for request in _REQUESTS])
        return {request for request, flag in zip(_REQUESTS, flags, strict=True) if flag}

    def broadcast_tensors(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite tensors, of the same shapes on all ranks, with those of the main rank."""
        if self._store is None:
            return
        with self._store.collective("the training state"):
            for tensor in tensors:
                dist.broadcast(tensor, self.main_rank)

    def all_gather(self, tensor: Tensor) -> list[Tensor]:
        """Gather a small tensor, of one shape on all ranks, from each rank."""
        if self._store is None:
            return [tensor]
        with self._store.collective("the tensors of all ranks"):
            return collectives.all_gather(tensor, self.world_size)

    def require_same(self, name: str, tensors: Iterable[Tensor]) -> None:
        """Check that all ranks hold the same bits in float32 tensors.

        They do as long as all ranks compute alike. Different processors or library versions may
        round differently, and the ranks then train different models.

        Args:
            name: of the tensors, for the message.
            tensors: to compare.

        Raises:
            DpoError: with the ranks that differ from the main rank.
        """
        if self._store is None:
            return
        # Sums of the bits as integers: exact, independent of the order, and changed by any single
        # flipped bit, which a float sum could round away.
        sums = torch.stack([tensor.view(torch.int32).sum(dtype=torch.int64) for tensor in tensors])
        by_rank = self.all_gather(sums.cpu())
        different = [
            self._store.name_of(rank)
            for rank, other in enumerate(by_rank)
            if not other.equal(by_rank[self.main_rank])
        ]
        if different:
            raise DpoError(
                f"{name} of these ranks differ from those of the main rank",
                "Train on machines of one kind, with the same versions, and resume: the last"
                " checkpoint is intact.",
                different,
            )

    # --- shards of a model; replicas, which each rank has whole, are left as they are ------------

    @property
    def is_sharded(self) -> bool:
        """Return True if models are divided among the ranks."""
        return self._mesh is not None

    def shard(
        self,
        root: nn.Module,
        blocks: Sequence[nn.Module],
        method: str,
        source: Mapping[str, Tensor],
    ) -> None:
        """Divide a model among the ranks, with the values of the main rank. Collective.

        Args:
            root, blocks, method: see `shards.shard`.
            source: whole parameters by their name in `root`, on the main rank.
        """
        assert self._mesh is not None
        shards.shard(root, blocks, self._mesh, method)
        self.fill(dict(root.named_parameters()), source)

    def fill(self, targets: Mapping[str, Tensor], source: Mapping[str, Tensor]) -> None:
        """Overwrite shards with the whole tensors that the main rank has by name. Collective."""
        assert self._store is not None
        for name, target in targets.items():
            with self._store.collective("the training state"):
                shards.fill(target, source[name] if self.is_main else None, self.main_rank)

    def whole(self, tensor: Tensor) -> Tensor:
        """Return a tensor whole on all ranks, for example a norm of shards. Collective."""
        if self._mesh is None or self._store is None:
            return tensor
        with self._store.collective("the gradient norm"):
            return shards.whole(tensor)

    def gather(self, tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Yield shards whole on the CPU of the main rank, one at a time, and nothing elsewhere.

        Collective: all ranks exhaust the iterator. Replicas are yielded on every rank, at once.
        """
        if self._mesh is None or self._store is None:
            yield from tensors.items()
            return
        # Wait without a time limit: the main rank may still write what it has gathered before.
        self._gathers += 1
        self.all_gather_object(f"gather/{self._gathers}", None)
        for name, tensor in tensors.items():
            with self._store.collective("the training state"):
                whole = shards.whole(tensor)
            if self.is_main:
                yield name, whole.cpu()

    @contextlib.contextmanager
    def computing(self) -> Iterator[None]:
        """Run forwards and backwards; those of shards are collective.

        Raises:
            RankLostError: another rank died or hangs.
        """
        if self._mesh is None or self._store is None:
            yield
            return
        with self._store.collective("the weights of a layer", may_fail_alone=True):
            yield

    # --- end -------------------------------------------------------------------------------------

    def cancel_start(self) -> None:
        """Make all other ranks stop before the first step."""
        if self._store is not None:
            self._store.cancel_start()

    def report_failure(self, error: DpoError) -> None:
        """Send the main rank the error that ends this rank; it writes the event."""
        if self._store is not None:
            self._store.report_failure(error)

    def report_end(self) -> None:
        """Record that the main rank has written the end of the run; the others end silently."""
        if self._store is not None:
            self._store.report_end()

    def is_end_known(self) -> bool:
        """Return True if the end of the run, or the failure of a rank, was reported."""
        return self._store is not None and self._store.is_end_known()

    def reported_failure(self) -> DpoError | None:
        """Return the error that another rank has reported."""
        return self._store.reported_failure() if self._store else None

    def record_exit(self, message: str) -> ExitCode:
        """Record why this rank ends, for the other ranks and for torchrun, which may restart all.

        Returns:
            The exit code of this rank.
        """
        print(message, file=sys.stderr, flush=True)
        if self._store is not None:
            self._store.report_lost(message)
        if (path := os.environ.get("TORCHELASTIC_ERROR_FILE")) is not None:
            fields = {"message": message, "extraInfo": {"timestamp": str(int(time.time()))}}
            with contextlib.suppress(OSError):
                Path(path).write_text(json.dumps({"message": fields}), encoding="utf-8")
        return ExitCode.FAILED

    def destroy(self) -> None:
        """Leave torch.distributed, after the last collective."""
        collectives.destroy()


SINGLE_PROCESS = ProcessGroup()
"""The group of a process that trains alone."""
