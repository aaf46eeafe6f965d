"""Events of a short run with a given held-out loss and given answers."""

from __future__ import annotations

import dataclasses
from typing import Any

from dpo_cli.run.events import Completed, Evaluated, Event, Planned, Sampled, Saved
from dpo_cli.run.plan import PlannedSteps
from tests.support import made_events, story
from tests.support.made_events import step_done

LN2 = 0.693147
PROSE = "The mill stands by the river, and in spring the water rises to its door."
LOOP = "I am a mill. " * 8


def planned(**settings: Any) -> Planned:
    """Return a plan of 15 steps with these settings of training and evaluation."""
    changed = {"train": {"learning_rate": 1.2e-4, **settings.pop("train", {})}, "eval": settings}
    tables = {table: dict(keys) for table, keys in story.PLAN.settings.items()}
    for table, keys in changed.items():
        tables[table] = {**tables.get(table, {}), **keys}
    steps = PlannedSteps(
        micro_batches=15, micro_batches_per_epoch=15, optimizer_steps=15, accumulation_steps=1
    )
    return Planned(plan=dataclasses.replace(story.PLAN, settings=tables, steps=steps))


def evaluated(step: int, loss: float, *, half_width: float = 1.0, pairs: int = 6) -> Evaluated:
    interval = {"loss/low": loss - half_width, "loss/high": loss + half_width}
    metrics = {"loss": loss, "rewards/accuracies": 0.5}
    return Evaluated(
        step=step,
        optimizer_step=step,
        metrics=metrics,
        pairs=pairs,
        seconds=1.0,
        groups={"all": {"pairs": pairs, **metrics, **interval}},
    )


def sampled(step: int, *answers: str) -> Sampled:
    samples = [
        {"place": "line 1", "prompt": "p", "policy": answer, "reference": PROSE}
        for answer in answers
    ]
    return Sampled(step=step, optimizer_step=step, samples=tuple(samples), seconds=1.0)  # type: ignore[arg-type]


def saved(step: int) -> Saved:
    return made_events.saved(step, is_best=True)


END = Completed(step=15, optimizer_step=15, weights="w")
WORSE: tuple[Event, ...] = (
    planned(),
    evaluated(0, 0.6931),
    saved(6),
    evaluated(15, 0.72),
    step_done(15),
    END,
)
"""Run whose held-out loss rose, with a better checkpoint after step 6."""
