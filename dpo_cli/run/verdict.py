"""Verdict on a finished run: the held-out loss rose, or the answers collapsed."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from statistics import fmean

from dpo_cli.formatting import format_count, format_percent
from dpo_cli.intervals import LOW
from dpo_cli.learning_rate import LearningRate
from dpo_cli.paired import estimate_mean
from dpo_cli.profile.doctrine import RunRecipe, learn_less
from dpo_cli.repetition import repetition
from dpo_cli.run.events import Completed, Evaluated, Sampled
from dpo_cli.run.plan import Plan
from dpo_cli.run.view import RunView

RISE_SHARE = 0.01
"""Rise of the held-out loss above the start that counts, as a share of it (0.007 at ln 2). A rise
beyond its 95 % interval always counts; with few pairs the interval is wide."""
LOST_SHARE = 0.25
"""Share of the best improvement; losing more of it until the end counts as a rise, too."""
COLLAPSE = 0.2
"""Growth of the mean repetition of the answers that counts as a collapse, if it is not chance."""


@dataclass(frozen=True)
class Verdict:
    """Harm that a finished run did, and what to try."""

    message: str
    remedy: str


def verdict_of(view: RunView) -> Verdict | None:
    """Return the verdict on a completed run; None without harm, or without held-out pairs."""
    if not isinstance(view.ending, Completed):
        return None
    messages = [message for message in (_rise(view), _collapse(view)) if message]
    return Verdict("; ".join(messages), _remedy(view)) if messages else None


def is_best_earlier(view: RunView) -> bool:
    """Return True if an earlier checkpoint than the last one has the lowest held-out loss."""
    return view.best is not None and view.best.step < view.step


def _rise(view: RunView) -> str | None:
    if (change := view.held_out_change) is None:
        return None
    start, end = change
    before, after = start.metrics["loss"], end.metrics["loss"]
    pairs = format_count(end.pairs, "held-out pair")
    if isfinite(before) and not isfinite(after):
        return f"the loss of {pairs} is {after} ({before:.4f} before training)"
    if after > before + RISE_SHARE * abs(before) or _low(end) > before:
        return f"the loss of {pairs} rose from {before:.4f} to {after:.4f}"
    points = view.evaluated["loss"].points  # finite ones only
    step, best = min(points, key=lambda point: point[1], default=(0, before))
    if after - best > LOST_SHARE * (before - best) and after > best + RISE_SHARE * abs(before):
        return f"the loss of {pairs} rose from {best:.4f} after step {step:,.0f} to {after:.4f}"
    return None


def _low(evaluated: Evaluated) -> float:
    """Return the lower end of the 95 % interval of the loss.

    Where policy and reference are equal at the start, all pairs have the same loss there, and this
    interval is that of the change pair by pair (`loss_change` in `dpo_cli.run.held_out_scores`).
    Elsewhere this interval is wider, so that fewer rises count.
    """
    return evaluated.groups.get("all", {}).get("loss" + LOW, float("-inf"))


def _collapse(view: RunView) -> str | None:
    start, end = view.sampled_start, view.sampled
    if start is None or end is None or end.step <= start.step:
        return None
    before, after = _repetitions(start), _repetitions(end)
    if len(before) != len(after):
        return None
    growth = estimate_mean([late - early for early, late in zip(before, after, strict=True)])
    # Beyond chance, too: two answers of which one repeats itself prove nothing.
    if growth.mean < COLLAPSE or growth.low <= 0:
        return None
    return (
        f"the answers to {format_count(len(after), 'prompt')} repeat themselves:"
        f" {format_percent(fmean(after), 0)} of their text,"
        f" {format_percent(fmean(before), 0)} at the start"
    )


def _repetitions(sampled: Sampled) -> list[float]:
    return [repetition(sample["policy"]) for sample in sampled.samples]


def _remedy(view: RunView) -> str:
    parts = [learn_less(_recipe(view.plan))] if view.plan else []
    if view.best is None and view.plan and view.plan.setting("eval.keep_best"):
        parts.append("Keep the starting weights: no checkpoint of this run is better.")
    elif view.best is None:
        parts.append("Set eval.keep_best = true and eval.interval to keep the best checkpoint.")
    return " ".join(parts)


def _recipe(plan: Plan) -> RunRecipe:
    steps = plan.steps
    rate = LearningRate.of(
        plan.settings["train"], steps.micro_batches, steps.accumulation_steps, steps.epochs
    )
    return RunRecipe(
        reduction=plan.setting("dpo.reduction"),
        beta=plan.setting("dpo.beta"),
        learning_rate=rate.peak,
        lr_sum=rate.lr_sum(steps.last_steps),
        parameters=plan.model.parameters,
        optimizer=plan.setting("train.optimizer") or "adamw",
        is_lora=plan.model.trained_parameters is not None,
    )
