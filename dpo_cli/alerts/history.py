"""Inputs of the alert rules: facts about the run, and a window of its steps."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from dpo_cli.profile.doctrine import RunRecipe
from dpo_cli.run.events import ACCURACY, Evaluated, StepDone

WINDOW = 20
"""Number of steps in the first and in the current mean: 80 pairs at four pairs per step."""
LONG_WINDOW = 200
"""Number of recent steps kept in memory."""
SIGNIFICANT = 3.0
"""Changes below this many standard errors count as noise: each step has different pairs."""
_USUAL_LOSSES = 50
"""Number of earlier losses that a new loss is compared with."""


@dataclass(frozen=True)
class RunFacts:
    """Facts about a run that are fixed before its first step.

    Attributes:
        recipe: values that remedies compare with the proposed ones.
        optimizer_steps: number of planned optimizer steps.
        vocab_size: number of entries of the policy's vocabulary.
        saturation_margin: see `dpo_cli.profile.doctrine.saturation_margin`.
        export_dtype: dtype of the exported weights file.
        adam_epsilon: epsilon of AdamW; 0 with another optimizer.
        keeps_small_updates: stochastic rounding keeps in that file what the nearest value loses.
        state_bytes: bytes that one save writes.
        threads: number of CPU threads.
        rows_of: maps optimizer step (from 1) and micro-batch (from 0) to the names of its rows.
    """

    recipe: RunRecipe
    optimizer_steps: int
    vocab_size: int
    saturation_margin: float
    export_dtype: str
    state_bytes: int
    threads: int
    rows_of: Callable[[int, int], str]
    keeps_small_updates: bool = False
    adam_epsilon: float = 1e-8


@dataclass
class RunHistory:
    """First and last steps of a run, in bounded memory; skipped steps are not part of it.

    `RunView` is not used here: it also counts skipped steps, and a sum of learning rates cannot be
    reduced when a resume goes back to an earlier step. The history is built from
    `dpo_cli.run.events.history` instead.
    """

    first: list[StepDone] = field(default_factory=list)
    """First `WINDOW` steps."""
    recent: deque[StepDone] = field(default_factory=lambda: deque(maxlen=LONG_WINDOW))
    """Last `LONG_WINDOW` steps."""
    earlier_losses: deque[float] = field(default_factory=lambda: deque(maxlen=_USUAL_LOSSES))
    """Losses of the last micro-batches before the last step."""
    lr_sum: float = 0.0
    """Sum of the learning rates so far."""
    held_out: Evaluated | None = None
    """Last evaluation."""

    def add(self, event: StepDone | Evaluated) -> None:
        """Append a step, or replace the last evaluation."""
        if isinstance(event, Evaluated):
            self.held_out = event
            return
        if self.recent:
            self.earlier_losses.extend(self.last.losses)
        if len(self.first) < WINDOW:
            self.first.append(event)
        self.recent.append(event)
        self.lr_sum += event.learning_rate

    @property
    def last(self) -> StepDone:
        """Last step."""
        return self.recent[-1]

    @property
    def is_comparable(self) -> bool:
        """Return True if the last `WINDOW` steps do not overlap with the first ones."""
        return len(self.recent) >= 2 * WINDOW

    def recent_values(self, metric: str) -> list[float]:
        """Return the values of a metric at the last `WINDOW` steps."""
        return _values(list(self.recent)[-WINDOW:], metric)

    def first_values(self, metric: str) -> list[float]:
        """Return the values of a metric at the first `WINDOW` steps."""
        return _values(self.first, metric)

    def change(self, metric: str) -> float:
        """Return the change of a mean from the first to the last steps; 0 if it may be chance."""
        before, now = self.first_values(metric), self.recent_values(metric)
        change = fmean(now) - fmean(before)
        error = math.sqrt((_variance(before) + _variance(now)) / WINDOW)
        return change if abs(change) > SIGNIFICANT * error else 0.0

    @property
    def accuracy(self) -> tuple[float, int] | None:
        """Reward accuracy of the recent pairs, and their number; None without any."""
        steps = [step for step in self.recent if ACCURACY in step.metrics]
        pairs = sum(step.pairs for step in steps)
        return (sum(s.metrics[ACCURACY] * s.pairs for s in steps) / pairs, pairs) if pairs else None

    def weights_moved_after(self, progress: float, facts: RunFacts) -> float | None:
        """Return the share of changed weights if the last step measured it; None if too early.

        Args:
            progress: part of the planned steps that must be done, and at least `WINDOW` steps.
            facts: facts about the run.
        """
        min_steps = max(WINDOW, progress * facts.optimizer_steps)
        if not self.recent or self.last.optimizer_step < min_steps:
            return None
        return self.last.metrics.get("weights_moved")


def _values(steps: Sequence[StepDone], metric: str) -> list[float]:
    return [step.metrics[metric] for step in steps if metric in step.metrics]


def _variance(values: Sequence[float]) -> float:
    mean = fmean(values)  # statistics.variance computes with fractions, 100 times slower
    return fmean((value - mean) ** 2 for value in values)
