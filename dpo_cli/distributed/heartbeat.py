"""Heartbeats in the store, to distinguish a rank that died or hangs from one that is only slow."""

from __future__ import annotations

import contextlib
import threading
import time

from torch.distributed.distributed_c10d import Store

_BEAT_SECONDS = 0.5


class Heartbeat:
    """Two counters in the store for each rank.

    `beats` grows while the process runs, whatever the main thread computes. `collectives` is the
    number of collectives that the rank has entered.

    Args:
        store: shared by all ranks.
        rank: rank of this process.
        world_size: number of ranks.
    """

    def __init__(self, store: Store, rank: int, world_size: int) -> None:
        self._store = store
        self._rank = rank
        self._world_size = world_size
        self._collectives = 0

    def start(self) -> None:
        """Start the thread that beats until the process ends."""
        # A daemon: it must not keep a process alive whose main thread has returned.
        threading.Thread(target=self._beat, daemon=True).start()

    def enter_collective(self) -> None:
        """Record that this rank enters its next collective."""
        self._collectives += 1
        self._store.set(f"collectives/{self._rank}", str(self._collectives))

    def beats_of(self, rank: int) -> int:
        """Return the number of beats of another rank, 0 before the first."""
        return self._counters("beats").get(rank, 0)

    def missing_ranks(self) -> tuple[list[int], str]:
        """Find the ranks because of which a collective failed; return a predicate that says why.

        Takes a few beats. A rank without a beat comes first: ranks that wait for it are late, too.
        """
        before = self._counters("beats")
        time.sleep(3 * _BEAT_SECONDS)
        after, collectives = self._counters("beats"), self._counters("collectives")
        silent = [rank for rank, beats in after.items() if beats == before.get(rank)]
        if silent:
            return silent, "is stopped or gone"
        late = [rank for rank, entered in collectives.items() if entered < self._collectives]
        return late, "is running but did not join"

    def _counters(self, name: str) -> dict[int, int]:
        """Read a counter of all other ranks that have one."""
        counters: dict[int, int] = {}
        with contextlib.suppress(RuntimeError):  # the store died with the process that held it
            for rank in range(self._world_size):
                key = f"{name}/{rank}"
                if rank != self._rank and self._store.check([key]):
                    counters[rank] = int(self._store.get(key))
        return counters

    def _beat(self) -> None:
        with contextlib.suppress(RuntimeError):  # without the store there is no rank left to read
            while True:
                self._store.add(f"beats/{self._rank}", 1)
                time.sleep(_BEAT_SECONDS)
