"""Numbers of the panel: metrics of training and held-out pairs, speed, memory and disk."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from math import nan

from rich.text import Text

from dpo_cli.formatting import (
    MISSING,
    format_count,
    format_duration,
    format_number,
    format_percent,
    format_size,
    format_speed,
)
from dpo_cli.intervals import HIGH, LOW
from dpo_cli.run.events import ACCURACY, RANKING, Evaluated
from dpo_cli.run.view import RunView
from dpo_cli.ui.terminal.layout import Block, fit

_LABEL_WIDTH, _COLUMN_WIDTH = 12, 11
_FACT_LABEL_WIDTH = 10
_METRICS = {
    "loss": ("loss", ".4f"),
    "accuracy": (ACCURACY, ".2f"),
    "ranking": (RANKING, ".2f"),
    "margin": ("rewards/margins", "+.3g"),
    "chosen": ("rewards/chosen", "+.3g"),
    "rejected": ("rewards/rejected", "+.3g"),
    "margin/token": ("margin_per_token", "+.3g"),
    "KL/token": ("kl", ".3g"),
}
"""Label of a row, metric and format; margin and KL per token are in nats."""

_ACCURACY_NOTE = "accuracy: chosen gained more"
_RANKING_NOTE = "ranking: chosen is more probable"
NOTES_HEIGHT = 3
"""Lines of both notes and the gap below them."""

GROUPS_TITLE = "held-out pairs, 95 % intervals"
_GROUP_WIDTHS = (6, 15, 13)


def metrics_title(view: RunView) -> str:
    """Return the title of the metrics, with the number of steps that the means are of."""
    steps = len(view.recent)
    if not steps:
        return "metrics"
    return f"metrics (train: last {format_count(steps, 'step')})"


def metrics_table(view: RunView, width: int) -> Block:
    """Return metrics of training and held-out pairs; in a wide table also those at the start."""
    held_out, start = view.held_out, view.held_out_start
    has_start = width >= _LABEL_WIDTH + 3 * _COLUMN_WIDTH
    heads = ["train", "held-out", *(["at start"] if has_start else [])]
    lines = [_row("", heads, ["cyan", "magenta", "dim"])]
    for label, (metric, form) in _METRICS.items():
        values = [view.recent_mean(metric), _of(held_out, metric)]
        if has_start:
            values.append(_of(start, metric))
        lines.append(_row(label, [format_number(value, form) for value in values], ["", "", "dim"]))
    return lines


def metrics_notes(lines: int) -> Block:
    """Return a gap of this many lines, with a legend of the two accuracies if both notes fit."""
    notes = [_ACCURACY_NOTE, _RANKING_NOTE] if lines > 1 else []
    return [*(Text(note, "dim") for note in notes), *([Text()] * (lines - len(notes)))]


def with_missing(metrics: Mapping[str, float]) -> Mapping[str, float]:
    """Return metrics with nan for each metric that a damaged stream lacks."""
    return defaultdict(lambda: nan, metrics)


def group_lines(evaluation: Evaluated | None, width: int) -> Block:
    """Return accuracy and margin per token of each group of held-out pairs; empty if unknown."""
    if evaluation is None or not evaluation.groups:
        return []
    name_width = width - sum(_GROUP_WIDTHS)
    heads = zip(("pairs", "accuracy", "margin/token"), _GROUP_WIDTHS, strict=True)
    lines = [Text.assemble(" " * name_width, ("".join(h.rjust(w) for h, w in heads), "magenta"))]
    for name, found in evaluation.groups.items():
        metrics = with_missing(found)
        low, high = metrics[ACCURACY + LOW], metrics[ACCURACY + HIGH]
        accuracy = format_number(found.get(ACCURACY), ".2f")
        values = (
            f"{metrics['pairs']:,.0f}",
            accuracy if accuracy == MISSING else f"{accuracy} {low:.2f}-{high:.2f}",
            format_number(metrics["margin_per_token"], "+.3g"),
        )
        row = Text.assemble((fit(Text(name.partition("/")[2] or name), name_width).plain, "dim"))
        row.append("".join(v.rjust(w) for v, w in zip(values, _GROUP_WIDTHS, strict=True)))
        lines.append(row)
    return lines


def figures(view: RunView, now: float, disk: tuple[int, int] | None) -> Block:
    """Return gradient norm, learning rate, speed, memory and saves, one line each.

    Args:
        view: state of the run.
        now: wall-clock seconds.
        disk: free bytes and number of checkpoints.
    """
    step, recent = view.last_step, view.recent
    seconds = sum(each.seconds for each in recent)
    tokens = sum(each.tokens for each in recent)
    facts: dict[str, list[str]] = {
        "gradient": [],
        "lr": [],
        "weights": [],
        "speed": [],
        "tokens": [],
        "memory": [],
        "saved": [],
        "disk": [],
    }
    if (norm := view.recent_mean("grad_norm")) is not None:
        facts["gradient"].append(f"{norm:.3g}")
    if view.skipped_steps:  # before the clipping: a narrow panel cuts the end of the line
        facts["gradient"].append(f"{len(view.skipped_steps):,} skipped")
    clipped = view.trained.get("clipped")
    if clipped and (share := clipped.mean) is not None:
        facts["gradient"].append(f"{format_percent(share, 0)} clipped")
    if step is not None:
        facts["lr"].append(f"{step.learning_rate:.2e}")
        facts["memory"].append(format_size(step.process_bytes))
        if step.device_bytes:
            facts["memory"].append(f"{format_size(step.device_bytes)} device")
    if view.weights_moved is not None:
        moved = format_percent(view.weights_moved, 0 if view.weights_moved >= 0.0995 else 1)
        facts["weights"].append(f"{moved} moved by step {view.weights_moved_step:,}")
    if seconds:
        facts["speed"].append(format_speed(sum(each.pairs for each in recent) / seconds))
    if seconds and tokens:
        padding = sum(each.padding_tokens for each in recent) / tokens
        facts["tokens"] += [f"{tokens / seconds:,.0f}/s", f"{format_percent(padding, 0)} padding"]
    if view.best is not None:
        facts["best"] = [f"step {view.best.optimizer_step:,}, kept"]
    if view.saved is not None:
        ago = max(0.0, now - view.saved.time)
        facts["saved"] += [f"step {view.saved.optimizer_step:,}", f"{format_duration(ago)} ago"]
    if disk is not None:
        free_bytes, checkpoints = disk
        facts["disk"] += [f"{format_size(free_bytes)} free", f"{checkpoints} kept"]
    return [_fact(label, ", ".join(words)) for label, words in facts.items()]


def _of(evaluation: Evaluated | None, metric: str) -> float | None:
    return evaluation.metrics.get(metric) if evaluation is not None else None


def _row(label: str, values: list[str], styles: list[str]) -> Text:
    row = Text.assemble((label.ljust(_LABEL_WIDTH), "dim"))
    for value, style in zip(values, styles, strict=False):
        row.append(value.rjust(_COLUMN_WIDTH), style)
    return row


def _fact(label: str, value: str) -> Text:
    return Text.assemble((label.ljust(_FACT_LABEL_WIDTH), "dim"), value or MISSING)
