"""From events to what trackers get: one row of figures for each optimizer step."""

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
    """The figures of one optimizer step and of the evaluation behind it.

    Their names are those that TRL's DPOTrainer logs under transformers' integrations: train/loss,
    train/rewards/margins, eval/loss. `time` is wall-clock seconds since the epoch.
    """

    optimizer_step: int
    time: float
    figures: dict[str, float] = field(default_factory=dict)
    samples: Sequence[Sample] = ()


class Rows:
    """Makes rows of events, in their order.

    The newest row is open: an evaluation may still add to it. A resume takes back what stands
    behind the state that it goes on from.
    """

    def __init__(self) -> None:
        self.resumed_behind: list[int] = []
        """Of each resume, the optimizer step behind which all was done again; -1 is everything."""
        self._rows: dict[int, Row] = {}
        self._micro_batches_per_epoch = 0
        self._kept = -1

    def take(self, event: Event) -> None:
        """Take in the next event."""
        match event:
            case Planned():
                self._micro_batches_per_epoch = event.plan.steps.micro_batches_per_epoch
            case Resumed():
                step = event.last_valid_step
                self.resumed_behind.append(step)
                self._rows = {key: row for key, row in self._rows.items() if key <= step}
            case StepDone():
                own = {"learning_rate": event.learning_rate, **event.metrics}
                if self._micro_batches_per_epoch:
                    own["epoch"] = event.step / self._micro_batches_per_epoch
                self._add(event, "train", own)
            case Evaluated():
                self._add(event, "eval", event.metrics)
            case Sampled():
                self._row(event).samples = event.samples
            case Saved() | Stopped() | Completed():
                self._kept = event.optimizer_step

    def take_closed(self, *, is_over: bool) -> list[Row]:
        """The rows to which nothing will be added, each once.

        Args:
            is_over: no event will follow. The open row is closed, too, unless it was never saved:
                a resume will do that step again.
        """
        steps = sorted(self._rows)
        if steps and not (is_over and steps[-1] <= self._kept):
            steps.pop()
        return [self._rows.pop(step) for step in steps]

    def _add(self, event: StepDone | Evaluated, split: str, figures: dict[str, Any]) -> None:
        row = self._row(event)
        row.figures |= {f"{split}/{name}": value for name, value in figures.items()}

    def _row(self, event: StepDone | Evaluated | Sampled) -> Row:
        row = self._rows.setdefault(event.optimizer_step, Row(event.optimizer_step, event.time))
        row.time = event.time
        return row
