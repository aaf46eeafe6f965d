"""What the alarms know: of a run beforehand, and of its steps so far. Numbers and events only."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from dpo_cli.run.events import Evaluated, StepDone

WINDOW = 20
"""Steps whose mean is "now"; as many at the start are what it is compared with. Of 80 pairs, at
four a step: fewer make a chance of an accuracy."""
LONG_WINDOW = 200
"""Steps that are remembered."""
SURE_PAIRS = 200
"""That an accuracy must be of: it is sure to 0.035 then."""
_LOSSES = 50
"""Micro-batches before a step whose losses are what is usual."""
SURE = 3.0
"""Standard errors that a change must exceed: other steps have other pairs."""


@dataclass(frozen=True)
class RunFacts:
    """What is known of a run before its first step.

    Attributes:
        optimizer_steps: planned.
        parameters: of the policy.
        learning_rate: as the profile states it.
        reach: the sum of the learning rates of all planned steps.
        beta, reduction: of the profile.
        saturation_margin: see `dpo_cli.profile.recipe.saturation_margin`.
        export_dtype: of the half-precision file.
        state_bytes: what one save writes.
        rows_of: names the rows behind a micro-batch (from 0) of an optimizer step (from 1).
    """

    optimizer_steps: int
    parameters: int
    learning_rate: float
    reach: float
    beta: float
    reduction: str
    saturation_margin: float
    export_dtype: str
    state_bytes: int
    rows_of: Callable[[int, int], str]


@dataclass
class RunHistory:
    """The steps so far, in bounded memory; those without an update are left out."""

    first: list[StepDone] = field(default_factory=list)
    """The first `WINDOW` of them."""
    recent: deque[StepDone] = field(default_factory=lambda: deque(maxlen=LONG_WINDOW))
    earlier_losses: deque[float] = field(default_factory=lambda: deque(maxlen=_LOSSES))
    """Of the last micro-batches before the last step."""
    reach: float = 0.0
    """The sum of the learning rates."""
    held_out: Evaluated | None = None

    def add(self, event: StepDone | Evaluated) -> None:
        """Let the course go on by this event."""
        if isinstance(event, Evaluated):
            self.held_out = event
            return
        if self.recent:
            self.earlier_losses.extend(self.last.losses)
        if len(self.first) < WINDOW:
            self.first.append(event)
        self.recent.append(event)
        self.reach += event.learning_rate

    @property
    def last(self) -> StepDone:
        """The newest step."""
        return self.recent[-1]

    @property
    def is_comparable(self) -> bool:
        """Whether the last steps are others than the first."""
        return len(self.recent) >= 2 * WINDOW

    def now(self, metric: str) -> list[float]:
        """A figure at each of the last `WINDOW` steps."""
        return _figures(list(self.recent)[-WINDOW:], metric)

    def at_first(self, metric: str) -> list[float]:
        """The same at the first."""
        return _figures(self.first, metric)

    def change(self, metric: str) -> float:
        """From the first steps to the last; 0 where that may be chance."""
        before, now = self.at_first(metric), self.now(metric)
        change = fmean(now) - fmean(before)
        error = math.sqrt((_variance(before) + _variance(now)) / WINDOW)
        return change if abs(change) > SURE * error else 0.0

    @property
    def accuracy(self) -> float | None:
        """Of the recent pairs, if they are enough to tell."""
        pairs = sum(step.pairs for step in self.recent)
        if pairs < SURE_PAIRS:
            return None
        return sum(s.metrics["rewards/accuracies"] * s.pairs for s in self.recent) / pairs

    def weights_moved_by(self, share: float, facts: RunFacts) -> float | None:
        """The share of weights that have changed, where it has just been counted and at least this
        share of the planned steps, and a window of them, is done; else None.
        """
        least = max(WINDOW, share * facts.optimizer_steps)
        if not self.recent or self.last.optimizer_step < least:
            return None
        return self.last.metrics.get("weights_moved")


def _figures(steps: Sequence[StepDone], metric: str) -> list[float]:
    return [step.metrics[metric] for step in steps if metric in step.metrics]


def _variance(figures: Sequence[float]) -> float:
    mean = fmean(figures)  # statistics.variance computes in fractions, a hundred times slower
    return fmean((figure - mean) ** 2 for figure in figures)
