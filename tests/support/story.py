"""Events of a run that never happened, for tests of panel, summary and commands."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dpo_cli.intervals import HIGH, LOW, wilson_interval
from dpo_cli.paired import ModelScores
from dpo_cli.run.directory import RunDirectory
from dpo_cli.run.event_writer import EventWriter
from dpo_cli.run.events import (
    EVALUATION,
    Alert,
    Completed,
    Evaluated,
    Event,
    Failed,
    Planned,
    Progress,
    Saved,
    StepDone,
    WorkerEnded,
    WorkerStarted,
    to_json,
)
from dpo_cli.run.held_out_scores import write_scores
from dpo_cli.run.plan import Plan, PlannedModel, PlannedPairs, PlannedSteps

STARTED = 1_767_268_800.0  # 2026-01-01 12:00 UTC
STEPS, STEP_SECONDS = 400, 1.5
PLAN = Plan(
    model=PlannedModel(
        architecture="minimind2",
        description="MiniMind version 2, 512 x 8, dense",
        parameters=25_829_888,
        shape={},
        weights_dtype="float16",
        weights_file="rlhf_512.pth",
    ),
    pairs=PlannedPairs(kept=800, skipped_rows=51, held_out=40, held_out_skipped_rows=0),
    steps=PlannedSteps(
        micro_batches=STEPS,
        micro_batches_per_epoch=STEPS // 2,
        optimizer_steps=STEPS // 2,
        accumulation_steps=2,
    ),
    loss="DPO",
    loss_at_start=math.log(2),
    router_aux_loss_coef=0.0,
    settings={
        "model": {"weights": "/models/full_sft_512.pth", "tokenizer": "/models/tokenizer"},
        "data": {"data_path": "/data/pairs.jsonl", "max_seq_len": 1024},
        "dpo": {"beta": 5.0, "reduction": "mean"},
        "train": {
            "learning_rate": 1e-6,
            "epochs": 2,
            "seed": 1337,
            "batch_size": 4,
            "schedule": "minimind2",
            "layout": "packed",
            "grad_clip": 1.0,
            "log_interval": 20,
        },
        "eval": {"fraction": 0.05},
    },
    device="cpu",
    dtype="float32",
    fingerprints={
        "weights": "ddab5a38" * 8,
        "reference": "ddab5a38" * 8,
        "tokenizer": "398072ab" * 8,
        "data": "fa386d5f" * 8,
    },
    environment={},
)
SETTINGS, FINGERPRINTS = PLAN.settings, PLAN.fingerprints
FAILED = Failed(
    message="optimizer step 87: the loss is not a finite number; the weights were not touched",
    remedy="look at these rows, or lower train.learning_rate; what was saved before is intact",
    details=("lines 17, 203, 204, 391 of data/pairs.jsonl",),
)
SLOW = Alert(
    code="slow-learning",
    message="after 100 steps the loss still reads ln 2: at this learning rate nothing can move",
    remedy="take the recipe that `dpo init` proposes",
)
CHINESE = Alert(
    code="drift",
    message="模型偏离参考模型太远，回答可能变得重复或没有意义，请检查保留集",
    remedy="降低学习率",
)


def plan_source(plan: Plan = PLAN) -> str:
    """Return Python code that defines `PLAN`, for a script that replaces a worker."""
    return f"from dpo_cli.run.plan import *\nPLAN = {plan!r}\n"


def at(seconds: float, event: Event) -> Event:
    """Return the event with a time stamp this long after the start."""
    return dataclasses.replace(event, time=STARTED + seconds, elapsed_seconds=seconds)


def preparation() -> Iterator[Event]:
    """Return the events up to the end of the preparation, after three seconds."""
    yield at(
        0.0,
        WorkerStarted(pid=7, device="cpu", device_name="a processor", dtype="float32", versions={}),
    )
    yield at(1.0, Progress(phase="encoding", done=400, total=891, unit="rows"))
    yield at(2.0, Planned(plan=PLAN))
    yield at(3.0, Progress(phase=EVALUATION, done=210, total=840, unit="pairs"))


def training(first: int, last: int) -> Iterator[Event]:
    """Return the events of the steps: evaluations every 50 steps, checkpoints every 100."""
    if first == 0:
        yield evaluated(0)
    for step in range(first + 2, last + 1, 2):
        yield step_done(step)
        if step % 50 == 0 or step == STEPS:
            yield evaluated(step)
        if step % 100 == 0 or step == STEPS:
            yield saved(step)


def step_done(step: int) -> Event:
    """Return a step with noisy but reproducible progress."""
    share, noise = step / STEPS, math.sin(step * 1.7) * math.cos(step * 0.31)
    metrics = {
        "loss": 0.6931 - 0.2 * share + 0.03 * noise,
        "rewards/chosen": 0.3 * share,
        "rewards/rejected": -0.6 * share - 0.05 * noise,
        "rewards/margins": 0.9 * share + 0.05 * noise,
        "rewards/accuracies": min(1.0, 0.5 + 0.4 * share + 0.2 * noise),
        "logps/chosen": -2.0 + 0.06 * share,
        "logps/rejected": -2.1 - 0.12 * share,
        "margin_per_token": 0.018 * share,
        "kl": 0.002 * share,
        "grad_norm": 0.8 + 0.4 * noise,
    }
    if step == 2 or step % 20 == 0:
        metrics["weights_moved"] = 0.05 * share
    done = StepDone(
        step=step,
        optimizer_step=step // 2,
        epoch=1 + (step > STEPS // 2),
        learning_rate=1e-6 * (0.1 + 0.5 * (1 + math.cos(math.pi * share))),
        losses=(metrics["loss"],) * 2,
        metrics=metrics,
        pairs=8,
        tokens=6_000,
        padding_tokens=180,
        seconds=2 * STEP_SECONDS - 0.2,
        process_bytes=1_234_000_000,
        device_bytes=0,
    )
    return at(5.0 + step * STEP_SECONDS, done)


def evaluated(step: int) -> Event:
    """Return an evaluation whose metrics follow those of training at a distance."""
    share = step / STEPS
    metrics = {
        "loss": 0.6931 - 0.17 * share,
        "rewards/chosen": 0.2 * share,
        "rewards/rejected": -0.5 * share,
        "rewards/margins": 0.7 * share,
        **({"rewards/accuracies": 0.48 + 0.35 * share} if step else {"rewards/ties": 1.0}),
        "margin_per_token": 0.014 * share,
        "kl": 0.0021 * share,
        "logps/accuracies": 0.52 + 0.2 * share,
    }
    groups = {
        name: {
            "pairs": pairs,
            **metrics,
            **{
                f"rewards/accuracies/{end}": min(1.0, accuracy + sign / pairs**0.5)
                for accuracy in [metrics.get("rewards/accuracies")]
                if accuracy is not None
                for end, sign in (("low", -1), ("high", 1))
            },
        }
        for name, pairs in (
            ("all", 40.0),
            ("language/Chinese", 25.0),
            ("language/Latin", 15.0),
            ("length/chosen longer", 21.0),
            ("length/like length", 12.0),
            ("length/rejected longer", 7.0),
        )
    }
    done = Evaluated(
        step=step,
        optimizer_step=step // 2,
        metrics=metrics,
        groups=groups,
        pairs=40,
        seconds=2.0,
    )
    return at(5.1 + step * STEP_SECONDS, done)


def saved(step: int) -> Event:
    """Return the checkpoint of a model of 26 million parameters."""
    return at(
        5.2 + step * STEP_SECONDS,
        Saved(
            step=step,
            optimizer_step=step // 2,
            checkpoint=f"step-{step // 2:08d}",
            weights="rlhf_512.pth",
            size_bytes=361_700_000,
            seconds=0.8,
            is_best=step == 200,
        ),
    )


def on_ranks(events: Iterable[Event], seconds: Sequence[float]) -> Iterator[Event]:
    """Return the run with several ranks, each with its own time per step."""
    for event in events:
        match event:
            case WorkerStarted():
                yield dataclasses.replace(event, hosts=("here",) * len(seconds))
            case StepDone():
                yield dataclasses.replace(
                    event,
                    rank_seconds=tuple(seconds),
                    rank_bytes=tuple(1_200_000_000 + 30_000_000 * n for n in range(len(seconds))),
                )
            case _:
                yield event


def whole() -> Iterator[Event]:
    """Return all events, from the first to the last."""
    yield from preparation()
    yield from training(0, STEPS)
    done = Completed(step=STEPS, optimizer_step=STEPS // 2, weights="rlhf_512.pth")
    yield at(606.0, done)
    yield dataclasses.replace(WorkerEnded(exit_code=0), time=STARTED + 606.5)


def with_ends(metrics: Mapping[str, float], pairs: int) -> dict[str, float]:
    """Add intervals of the accuracy to the metrics of pairs with different prompts."""
    name = "rewards/accuracies"
    low, high = wilson_interval(metrics[name], pairs)
    return {"pairs": float(pairs), **metrics, name + LOW: low, name + HIGH: high}


def contender(settings: dict[str, Any], lead: float = 0.0, pairs: int = 40) -> Iterator[Event]:
    """Return a run under another profile, finally better in accuracy and loss by `lead`.

    Args:
        settings: tables with values that replace those of the plan.
        lead: lead of the held-out accuracy.
        pairs: number of held-out pairs.
    """
    changed = {table: SETTINGS.get(table, {}) | values for table, values in settings.items()}
    plan = dataclasses.replace(PLAN, settings=SETTINGS | changed)
    for event in whole():
        match event:
            case Planned():
                yield dataclasses.replace(event, plan=plan)
            case Evaluated():
                if not event.step:
                    yield dataclasses.replace(event, pairs=pairs)
                    continue
                share = event.step / STEPS
                wins = round((event.metrics["rewards/accuracies"] + lead * share) * pairs)
                metrics = {"loss": event.metrics["loss"] - lead * share}
                metrics["rewards/accuracies"] = wins / pairs
                metrics = event.metrics | metrics
                yield dataclasses.replace(
                    event, pairs=pairs, metrics=metrics, groups={"all": with_ends(metrics, pairs)}
                )
            case _:
                yield event


def scores(event: Evaluated) -> ModelScores:
    """Return scores of pairs whose means are those of an evaluation; the easy pairs come first."""
    accuracy, pairs = event.metrics.get("rewards/accuracies"), range(event.pairs)
    noise = [0.1 * math.sin(2 * pair + 5 * (accuracy or 0) * pair) for pair in pairs]
    mean = sum(noise) / len(noise)
    metrics = {"loss": [event.metrics["loss"] + each - mean for each in noise]}
    if accuracy is not None:
        right = round(accuracy * event.pairs)
        metrics["rewards/accuracies"] = [float(pair < right) for pair in pairs]
    return ModelScores(metrics, list(pairs))


def write(root: Path, name: str, *events: Event) -> RunDirectory:
    """Write a run with these events, with their own time stamps."""
    run = RunDirectory.create(root, name, "")
    EventWriter(run.events_path).close()
    lines = [to_json(event) + "\n" for event in events]
    run.events_path.write_text("".join(lines), encoding="utf-8")
    evaluations = [event for event in events if isinstance(event, Evaluated)]
    for event in evaluations:
        write_scores(run.held_out_path, event.optimizer_step, scores(event))
    if any(isinstance(event, Completed) for event in events):
        run.mark_completed(optimizer_step=STEPS // 2, weights="rlhf_512.pth")
    return run
