"""Rows for trackers, made from events: the metrics of one optimizer step each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from dpo_cli.run.events import (
    Completed,
    Evaluated,
    Event,
    Planned,
    Resumed,
    Sample,
    Sampled,
    Saved,
    StepDone,
    Stopped,
)


@dataclass
class Row:
    """Metrics of one optimizer step and of the evaluation after it.

    The names are those that TRL's DPOTrainer logs through transformers' integrations: train/loss,
    train/rewards/margins, eval/loss. `time` is wall-clock seconds since the epoch.
    """

    optimizer_step: int
    time: float
    metrics: dict[str, float] = field(default_factory=dict)
    samples: Sequence[Sample] = ()

    def samples_as_markdown(self) -> list[str]:
        """Return each sample as a Markdown text."""
        return [
            "\n\n".join(f"**{name}**\n\n{text}" for name, text in sample.items())
            for sample in self.samples
        ]


class Rows:
    """Makes rows from events, in order.

    The newest row is open: an evaluation may still add to it. A resume removes the rows after the
    checkpoint that it continues from.
    """

    def __init__(self) -> None:
        self.resumed_after: list[int] = []
        """For each resume, the last optimizer step that was not repeated; -1 if all were."""
        self._rows: dict[int, Row] = {}
        self._micro_batches_per_epoch = 0
        self._saved_step = -1

    def take(self, event: Event) -> None:
        """Process the next event."""
        match event:
            case Planned():
                self._micro_batches_per_epoch = event.plan.steps.micro_batches_per_epoch
            case Resumed():
                step = event.last_valid_step
                self.resumed_after.append(step)
                self._rows = {key: row for key, row in self._rows.items() if key <= step}
            case StepDone():
                metrics = {"learning_rate": event.learning_rate, **event.metrics}
                if self._micro_batches_per_epoch:
                    metrics["epoch"] = event.step / self._micro_batches_per_epoch
                self._add(event, "train", metrics)
            case Evaluated():
                self._add(event, "eval", event.metrics)
            case Sampled():
                self._row(event).samples = event.samples
            case Saved() | Stopped() | Completed():
                self._saved_step = event.optimizer_step

    def take_closed(self, *, is_over: bool) -> list[Row]:
        """Return and remove the rows that are final.

        Args:
            is_over: no event will follow. The open row is final, too, if its step was saved; else
                a resume will repeat the step.
        """
        steps = sorted(self._rows)
        if steps and not (is_over and steps[-1] <= self._saved_step):
            steps.pop()
        return [self._rows.pop(step) for step in steps]

    def _add(self, event: StepDone | Evaluated, split: str, metrics: dict[str, Any]) -> None:
        row = self._row(event)
        row.metrics |= {f"{split}/{name}": value for name, value in metrics.items()}

    def _row(self, event: StepDone | Evaluated | Sampled) -> Row:
        row = self._rows.setdefault(event.optimizer_step, Row(event.optimizer_step, event.time))
        row.time = event.time
        return row
