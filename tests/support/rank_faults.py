"""Faults of one rank among several, and notes of what each of them did: see `tests.support.ranks`.

An arm for ranks is told whose process it is in.
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
    """A fault of one rank; the others have none."""
    if number == rank:
        arm()


def each(arms: tuple[Callable[[int], object], ...], number: int) -> None:
    """Several arms at once."""
    for arm in arms:
        arm(number)


def before_step(optimizer_step: int, act: Callable[[], object]) -> None:
    """Do something before an optimizer step, on whatever rank."""
    from dpo_cli.training.trainer import Trainer

    take_step = Trainer.take_step

    def watched(self: Trainer, *arguments: Any) -> Any:
        if self.optimizer_step + 1 == optimizer_step:
            act()
        return take_step(self, *arguments)

    Trainer.take_step = watched  # type: ignore[method-assign]


def send_before(optimizer_step: int, number: signal.Signals) -> None:
    """A signal to this rank."""
    before_step(optimizer_step, lambda: os.kill(os.getpid(), number))


def raise_before(optimizer_step: int, error: Exception) -> None:
    """An exception that only this rank meets."""

    def fail() -> None:
        raise error

    before_step(optimizer_step, fail)


def flip_a_bit_before(optimizer_step: int) -> None:
    """In one weight of this rank: another machine might have computed it so."""
    from dpo_cli.training.trainer import Trainer

    take_step = Trainer.take_step

    def watched(self: Trainer, *arguments: Any) -> Any:
        if self.optimizer_step + 1 == optimizer_step:
            weight = next(self.policy.parameters()).detach().flatten()
            weight[7:8].view(torch.int32).bitwise_xor_(1)
        return take_step(self, *arguments)

    Trainer.take_step = watched  # type: ignore[method-assign]


def out_of_memory_before(optimizer_step: int) -> None:
    """What torch raises on a card that is full."""
    raise_before(optimizer_step, torch.OutOfMemoryError("no more"))


def elsewhere(data: Path) -> None:
    """A machine of another name, where the data is another file."""
    from dpo_cli.training import session

    from_tables = session.from_tables
    socket.gethostname = lambda: "elsewhere"

    def own(tables: dict[str, Any]) -> Any:
        return from_tables({**tables, "data": {**tables["data"], "data_path": str(data)}})

    session.from_tables = own


def with_error_file(folder: Path, number: int) -> None:
    """Where torchrun has each rank leave its last words."""
    os.environ["TORCHELASTIC_ERROR_FILE"] = str(folder / f"error-{number}.json")


def note(folder: Path, number: int) -> None:
    """Write down what this rank computes: `pairs_of` and `ends_of` read it."""
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
            digest.update(parameter.detach().numpy().tobytes())
        end = [self.optimizer_step, stop, digest.hexdigest()]
        (folder / f"end-{number}").write_text(json.dumps(end))
        return stop

    BatchPlanner.make_batch = noted_batch  # type: ignore[method-assign]
    Trainer.train = noted_train  # type: ignore[method-assign]


def pairs_of(folder: Path) -> dict[int, list[int]]:
    """The pairs of each optimizer step, whichever rank computed them, sorted."""
    steps: dict[int, list[int]] = {}
    for file in folder.glob("pairs-*"):
        for line in file.read_text().splitlines():
            step, indices = json.loads(line)
            steps.setdefault(step, []).extend(indices)
    return {step: sorted(steps[step]) for step in sorted(steps)}


def ends_of(folder: Path) -> list[tuple[int, str | None, str]]:
    """How the ranks left the loop: after which step, why, and the digest of their weights."""
    return [tuple(json.loads(file.read_text())) for file in sorted(folder.glob("end-*"))]
