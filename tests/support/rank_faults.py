"""Faults of one rank, and records of the work of each rank: see `tests.support.ranks`.

An arm for ranks gets the number of its rank.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def only_on(rank: int, arm: Callable[[], object], number: int) -> None:
    """Arm a fault on one rank only."""
    if number == rank:
        arm()


def each(arms: tuple[Callable[[int], object], ...], number: int) -> None:
    """Arm several faults."""
    for arm in arms:
        arm(number)


def before_step(optimizer_step: int, act: Callable[[], object]) -> None:
    """Call `act` before an optimizer step."""
    from dpo_cli.training.trainer import Trainer

    take_step = Trainer.take_step

    def watched(self: Trainer, *arguments: Any) -> Any:
        if self.optimizer_step + 1 == optimizer_step:
            act()
        return take_step(self, *arguments)

    Trainer.take_step = watched  # type: ignore[method-assign]


def send_before(optimizer_step: int, number: signal.Signals) -> None:
    """Send a signal to this rank before an optimizer step."""
    before_step(optimizer_step, lambda: os.kill(os.getpid(), number))


def raise_before(optimizer_step: int, error: Exception) -> None:
    """Raise an error on this rank before an optimizer step."""

    def fail() -> None:
        raise error

    before_step(optimizer_step, fail)


def flip_a_bit_before(optimizer_step: int) -> None:
    """Flip one bit in a weight of this rank, as another machine might compute it."""
    from dpo_cli.training.trainer import Trainer

    take_step = Trainer.take_step

    def watched(self: Trainer, *arguments: Any) -> Any:
        if self.optimizer_step + 1 == optimizer_step:
            weight = next(self.policy.parameters()).detach().flatten()
            weight[7:8].view(torch.int32).bitwise_xor_(1)
        return take_step(self, *arguments)

    Trainer.take_step = watched  # type: ignore[method-assign]


def out_of_memory_before(optimizer_step: int) -> None:
    """Raise torch's error for a GPU without free memory."""
    raise_before(optimizer_step, torch.OutOfMemoryError("no more"))


def elsewhere(data: Path) -> None:
    """Pretend to be another machine, where the data is another file."""
    from dpo_cli.training import session

    from_tables = session.from_tables
    socket.gethostname = lambda: "elsewhere"

    def own(tables: dict[str, Any]) -> Any:
        return from_tables({**tables, "data": {**tables["data"], "data_path": str(data)}})

    session.from_tables = own


def with_error_file(folder: Path, number: int) -> None:
    """Set the file to which torchrun lets each rank write its last error."""
    os.environ["TORCHELASTIC_ERROR_FILE"] = str(folder / f"error-{number}.json")


def note(folder: Path, number: int) -> None:
    """Record the work of this rank, for `pairs_of` and `ends_of`."""
    from dpo_cli.distributed.shards import own_part
    from dpo_cli.training.batches import BatchPlanner
    from dpo_cli.training.trainer import Trainer

    make_batch, train = BatchPlanner.make_batch, Trainer.train
    trainers: list[Trainer] = []

    def noted_batch(self: BatchPlanner, pairs: Any, indices: Any) -> Any:
        if trainers and trainers[0].policy.training:
            with (folder / f"pairs-{number}").open("a") as file:
                file.write(json.dumps([trainers[0].optimizer_step + 1, list(indices)]) + "\n")
        return make_batch(self, pairs, indices)

    def noted_train(self: Trainer) -> Any:
        trainers[:] = [self]
        stop = train(self)
        digest = hashlib.sha256()
        for parameter in self.policy.parameters():
            digest.update(own_part(parameter).numpy().tobytes())
        end = [self.optimizer_step, stop, digest.hexdigest()]
        (folder / f"end-{number}").write_text(json.dumps(end))
        return stop

    BatchPlanner.make_batch = noted_batch  # type: ignore[method-assign]
    Trainer.train = noted_train  # type: ignore[method-assign]


def pairs_of(folder: Path) -> dict[int, list[int]]:
    """Return the pairs of each optimizer step over all ranks, sorted."""
    steps: dict[int, list[int]] = {}
    for file in folder.glob("pairs-*"):
        for line in file.read_text().splitlines():
            step, indices = json.loads(line)
            steps.setdefault(step, []).extend(indices)
    return {step: sorted(steps[step]) for step in sorted(steps)}


def ends_of(folder: Path) -> list[tuple[int, str | None, str]]:
    """Return how each rank ended: step, reason, and digest of the weights."""
    return [tuple(json.loads(file.read_text())) for file in sorted(folder.glob("end-*"))]
