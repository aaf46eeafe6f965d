"""Key-value store of the ranks: messages between them, and the reason why one of them ends."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from dpo_cli.distributed.heartbeat import Heartbeat
from dpo_cli.errors import DpoError, first_line

STORE_PREFIX = "DPO_STORE_PREFIX"
"""Environment variable with the prefix of all keys, set by our agent.

Our agent makes a new store for each attempt, so a constant prefix is enough. Torchrun started by
hand keeps the store of a lost attempt with all its keys; there the restart count separates the
attempts. Our agent cannot use that count: each machine counts its own restarts.
"""
_POLL_SECONDS = 0.02
SILENT_SECONDS = 120.0
"""A rank without a heartbeat for this long is lost; a starting rank has the same time."""
_ENDED, _FAILED, _CANCELLED, _LOST = "ended", "failed", "cancelled", "lost"


class StartCancelledError(Exception):
    """A rank was asked to stop before the first step; all ranks end with it."""


class RankLostError(Exception):
    """Another rank died or hangs without a reported reason; all ranks end, and may be restarted."""


def connect() -> RankStore | None:
    """Connect to the store that the environment names, as torchrun sets it; None for one process.

    Raises:
        DpoError: the environment is incomplete, or the store cannot be reached.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return None
    try:
        store, rank, world_size = next(rendezvous("env://"))
    except (ValueError, RuntimeError) as error:  # RuntimeError: torch's own DistError
        raise DpoError(
            f"the other ranks cannot be reached: {first_line(error)}",
            "Check RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT, which torchrun sets; `dpo check`"
            " tries them.",
        ) from error
    prefix = os.environ.get(STORE_PREFIX) or os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return RankStore(PrefixStore(prefix, store), rank, world_size)


class RankStore:
    """Store that all ranks share.

    Args:
        store: with a prefix that no earlier attempt has used.
        rank: rank of this process.
        world_size: number of ranks.
    """

    def __init__(self, store: Store, rank: int, world_size: int) -> None:
        self.store = store
        self.rank = rank
        self.main_rank = 0
        self.hosts: Sequence[str] = ()
        """Host name of each rank, once the ranks have exchanged them."""
        self._heartbeat = Heartbeat(store, rank, world_size)
        self._heartbeat.start()

    def name_of(self, rank: int) -> str:
        """Return "rank N on HOST", for messages."""
        return f"rank {rank} on {self.hosts[rank]}" if self.hosts else f"rank {rank}"

    # --- messages --------------------------------------------------------------------------------

    def put(self, key: str, value: Any) -> None:
        """Publish a plain value under a key that is used once."""
        self.store.set(key, json.dumps(value))

    def wait_for(self, key: str, rank: int) -> Any:
        """Return the value that `rank` publishes under `key`, waiting for it without a time limit.

        Raises:
            StartCancelledError: a rank was asked to stop.
            DpoError: on the main rank, the failure that another rank reported.
            RankLostError: on all ranks but the main one, if any rank failed; on any, if `rank` is
                lost.
        """
        beats, look_at = -1, time.monotonic()
        # Polling, because a blocking `get` could not watch the other keys, and would hold the lock
        # of the store's client, so that this process could not send heartbeats.
        while True:
            # Read before the key: the main rank publishes its last value, then the end of the run.
            # In the other order both could appear between two reads, and the value would be missed.
            is_over = self.is_end_known()
            if self.store.check([key]):
                return json.loads(self.store.get(key))
            if self.store.check([_CANCELLED]):
                raise StartCancelledError
            if is_over:
                failure = self.reported_failure() if self.rank == self.main_rank else None
                raise failure or RankLostError("the run ended")
            if self.store.check([_LOST]):
                raise RankLostError(self.store.get(_LOST).decode())
            if time.monotonic() >= look_at:
                before, beats = beats, self._heartbeat.beats_of(rank)
                look_at = time.monotonic() + SILENT_SECONDS
                if rank != self.rank and beats == before:
                    raise RankLostError(f"{self.name_of(rank)} is stopped or gone")
            time.sleep(_POLL_SECONDS)

    @contextlib.contextmanager
    def collective(self, name: str, *, may_fail_alone: bool = False) -> Iterator[None]:
        """Run a collective; turn torch's error into one that names the missing ranks.

        Args:
            name: of the data, for the message.
            may_fail_alone: this rank also computes in the context: if no rank is missing, the error
                is of this rank and is raised as it is.

        Raises:
            RankLostError: another rank died, or did not join in time.
        """
        began = time.monotonic()
        try:
            self._heartbeat.enter_collective()
            yield
        except RuntimeError as error:
            waited = time.monotonic() - began
            if may_fail_alone and isinstance(error, torch.OutOfMemoryError):
                raise
            ranks, why = self._heartbeat.missing_ranks()
            if may_fail_alone and not ranks:
                raise
            named = ", ".join(map(self.name_of, ranks))
            missing = f"{named} {why}" if named else "no rank is missing"
            raise RankLostError(
                f"rank {self.rank} waited {waited:.0f} s for {name}: {missing}"
                f" ({first_line(error)})"
            ) from error

    # --- the end ---------------------------------------------------------------------------------
    # The process that holds the store may be the first to die. Every report is then lost, which
    # must not hide the error that is reported: hence all the suppressed RuntimeErrors.

    def cancel_start(self) -> None:
        """Make all other ranks raise `StartCancelledError`."""
        self.store.set(_CANCELLED, "1")

    def report_failure(self, error: DpoError) -> None:
        """Send the main rank the error that ends this rank."""
        with contextlib.suppress(RuntimeError):
            self.put(_FAILED, {"rank": self.rank, **error.to_dict()})

    def reported_failure(self) -> DpoError | None:
        """Return the error that another rank has reported, with the rank in the message."""
        with contextlib.suppress(RuntimeError):
            if self.store.check([_FAILED]):
                fields = json.loads(self.store.get(_FAILED))
                message = f"{self.name_of(fields['rank'])}: {fields['message']}"
                return DpoError.from_dict({**fields, "message": message})
        return None

    def report_end(self) -> None:
        """Record that the main rank has written the end of the run to the event stream."""
        with contextlib.suppress(RuntimeError):
            self.store.set(_ENDED, "1")

    def report_lost(self, message: str) -> None:
        """Record that this rank ends without an error that explains the run's end."""
        with contextlib.suppress(RuntimeError):
            # The first rank to end is the cause; those that miss it follow.
            if not self.store.check([_LOST]):
                self.store.set(_LOST, f"{self.name_of(self.rank)} has ended: {message}")

    def is_end_known(self) -> bool:
        """Return True if the end of the run, or the failure of a rank, was reported."""
        with contextlib.suppress(RuntimeError):
            return any(self.store.check([key]) for key in (_ENDED, _FAILED))
        return False
