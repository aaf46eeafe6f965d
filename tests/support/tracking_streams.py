"""Event streams of runs that never happened, and their profile."""

from __future__ import annotations

import dataclasses
import getpass
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dpo_cli.profile.resolved import to_toml
from dpo_cli.profile.schema import Profile
from dpo_cli.run.directory import RunDirectory
from dpo_cli.run.event_writer import EventWriter
from dpo_cli.run.events import (
    Evaluated,
    Event,
    Planned,
    Resumed,
    Sampled,
    StepDone,
)
from dpo_cli.run.tracking.feeder import Feeder
from dpo_cli.run.tracking.tracker import Tracker
from tests.support.made_events import step_done
from tests.support.story import PLAN

STEPS = dataclasses.replace(PLAN.steps, micro_batches_per_epoch=4)
PLANNED = Planned(plan=dataclasses.replace(PLAN, steps=STEPS))
SECRET = "a secret of the data"
_SHORTEST = 4
"""Shortest name that does not appear in a few kilobytes of data by chance."""


def profile(**track: Any) -> Profile:
    tables = {
        "model": {"tokenizer": "/secret/tokenizer", "weights": "/secret/full_sft_512.pth"},
        "data": {"data_path": "/secret/dpo.jsonl", "columns": {"prompt": "secret_column"}},
        "eval": {"path": "/secret/held_out.jsonl"},
        "launch": {"rdzv_endpoint": "secrethost:29400"},
        "track": track,
    }
    return Profile.model_validate(tables)


def private_words(*words: str | Path) -> list[bytes]:
    """Return words that must stay on the machine: `words`, secrets, host and user name."""
    names = [name for name in (socket.gethostname(), getpass.getuser()) if len(name) >= _SHORTEST]
    return [str(word).encode() for word in (*words, "secret", *names)]


def new_run(root: Path, **track: Any) -> RunDirectory:
    return RunDirectory.create(root / "runs", "dense", to_toml(profile(**track)))


def feed_to(name: str, tracker: type[Tracker], run: RunDirectory, **track: Any) -> None:
    """Feed a tracker all events of a run, and finish it."""
    feeder = Feeder(run, profile(**track), {name: tracker})
    feeder.feed(is_over=True)
    feeder.finish()


def tell(run: RunDirectory, *events: Event) -> None:
    writer = EventWriter(run.events_path)
    for event in events:
        writer.append(event)
    writer.close()


def step(number: int, loss: float | None = None) -> StepDone:
    metrics = {"loss": 1 / number if loss is None else loss, "rewards/margins": 0.25 * number}
    return step_done(number, learning_rate=1e-6 * number, metrics=metrics)


def steps(numbers: Iterable[int]) -> list[StepDone]:
    return [step(number) for number in numbers]


def evaluated(number: int) -> Evaluated:
    metrics = {"loss": 0.6, "logps/chosen": -10.0 * number}
    return Evaluated(step=number, optimizer_step=number, metrics=metrics, pairs=8, seconds=1.0)


def sampled(number: int) -> Sampled:
    sample = {"place": "line 3", "prompt": SECRET, "policy": "yes " + SECRET, "reference": "no"}
    return Sampled(step=number, optimizer_step=number, samples=(sample,), seconds=1.0)  # type: ignore[arg-type]


def resumed(number: int) -> Resumed:
    return Resumed(step=number, optimizer_step=number, checkpoint=f"step-{number:08d}")
