"""A run as it stands, gathered from its events one by one: all that the panel draws."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from math import isfinite, nan

from dpo_cli.run.events import (
    EVALUATION,
    Alert,
    Completed,
    Evaluated,
    Event,
    Failed,
    Planned,
    Progress,
    RankEnded,
    Resumed,
    Sampled,
    Saved,
    StepDone,
    Stopped,
    WorkerEnded,
    WorkerStarted,
)
from dpo_cli.run.plan import Plan
from dpo_cli.run.series import Series

RECENT_STEPS = 20
"""How many optimizer steps the figures "of now" are means over."""


class State(StrEnum):
    """What a run is doing, in the word that people see."""

    STARTING = "starting"
    PREPARING = "preparing"
    TRAINING = "training"
    EVALUATING = "evaluating"
    SAVING = "saving"
    STOPPING = "stopping"
    COMPLETED = "completed"
    STOPPED = "stopped"
    FAILED = "failed"
    KILLED = "killed"


@dataclass
class RunView:
    """What the events so far come to. `take` is the only thing that changes it.

    Bounded in memory (but for skipped steps and best states) and O(1) an event, however long
    the run.
    """

    plan: Plan | None = None
    worker: WorkerStarted | None = None
    phase: Progress | None = None
    """What it is busy with before training."""
    last_step: StepDone | None = None
    recent: deque[StepDone] = field(default_factory=lambda: deque(maxlen=RECENT_STEPS))
    """The last steps that count, whoever did them."""
    held_out: Evaluated | None = None
    held_out_start: Evaluated | None = None
    """The first evaluation: what the policy is compared with."""
    skipped_steps: list[int] = field(default_factory=list)
    """The steps whose gradient was not finite, ascending: no update was made of them."""
    weights_moved: float | None = None
    saved: Saved | None = None
    sampled: Sampled | None = None
    alerts: dict[str, Alert] = field(default_factory=dict)
    """The newest of each code, in order of their coming."""
    ending: Completed | Stopped | Failed | WorkerEnded | None = None
    lost_ranks: list[RankEnded] = field(default_factory=list)
    """Of this start, those that failed, the first one first."""
    is_under_way: bool = False
    """Whether this start has come to training, or to the evaluation before it."""
    is_stopping: bool = False
    """Whether it was asked to stop. The stream does not tell: whoever asked sets it."""
    step: int = 0
    """Micro-batches done."""
    trained: defaultdict[str, Series] = field(default_factory=lambda: defaultdict(Series))
    """Curves over the training pairs, by metric; also "learning_rate", "pairs_per_second" and
    "clipped" (0 or 1)."""
    evaluated: defaultdict[str, Series] = field(default_factory=lambda: defaultdict(Series))
    """Curves over the held-out pairs, by metric."""
    events: int = 0
    """How many there were."""
    time: float = 0.0
    """When the last one came."""
    _timed: deque[StepDone] = field(default_factory=lambda: deque(maxlen=RECENT_STEPS))
    """The last steps of this start: the clock of another began anew."""
    _bests: list[Saved] = field(default_factory=list)
    _seconds_of_earlier_starts: float = 0.0
    _seconds_of_this_start: float = 0.0

    @classmethod
    def of(cls, events: Iterable[Event]) -> RunView:
        """What these events come to."""
        view = cls()
        for event in events:
            view.take(event)
        return view

    def take(self, event: Event) -> None:
        """Let the view include `event`."""
        self.time = event.time
        self.events += 1
        if isinstance(event, WorkerStarted):
            self.expect_start()
            self.worker = event
        # The largest: who appends after the worker's end has a clock of its own, near zero.
        self._seconds_of_this_start = max(self._seconds_of_this_start, event.elapsed_seconds)
        match event:
            case Progress():
                self.phase = event
            case Planned():
                self.plan, self.phase = event.plan, None
            case Resumed():
                self._go_back(event)
            case StepDone():
                self._take_step(event)
            case Evaluated():
                self._take_evaluation(event)
            case Sampled():
                self.sampled, self.phase = event, None
            case Saved():
                self.saved = event
                if event.is_best:
                    self._bests.append(event)
            case Alert():
                self.alerts.pop(event.code, None)
                self.alerts[event.code] = event
            case RankEnded():
                self.lost_ranks.append(event)
            case Completed() | Stopped() | Failed():
                self.ending = event
            case WorkerEnded() if self.ending is None:  # it had no time to say how
                self.ending = event

    def expect_start(self) -> None:
        """Forget how the last start ended: a new one is under way."""
        self._seconds_of_earlier_starts += self._seconds_of_this_start
        self._seconds_of_this_start = 0.0
        self.worker = self.phase = self.ending = None
        self.is_under_way = self.is_stopping = False
        self.lost_ranks = []
        self._timed.clear()

    # --- what follows from it --------------------------------------------------------------------

    @property
    def state(self) -> State:
        """What the run is doing, as far as events tell."""
        match self.ending:
            case Completed():
                return State.COMPLETED
            case Stopped():
                return State.STOPPED
            case WorkerEnded(signal=number) if number:
                return State.KILLED
            case Failed() | WorkerEnded():
                return State.FAILED
        if self.is_stopping:
            return State.STOPPING
        if self.worker is None:
            return State.STARTING
        if not self.is_under_way:
            return State.EVALUATING if self._is_evaluating else State.PREPARING
        if self._is_evaluating:
            return State.EVALUATING
        if self.total_steps and self.step == self.total_steps:
            is_behind = self.held_out is not None and self.held_out.step < self.step
            return State.EVALUATING if is_behind else State.SAVING
        return State.TRAINING

    @property
    def total_steps(self) -> int:
        """Micro-batches planned; 0 while that is unknown."""
        return self.plan.steps.micro_batches if self.plan else 0

    @property
    def seconds_per_step(self) -> float:
        """Of the last steps, by the worker's monotonic clock, saves and evaluations included."""
        first, last = self._timed[0], self._timed[-1]
        if first is last:
            return last.seconds / len(last.losses)
        return (last.elapsed_seconds - first.elapsed_seconds) / (last.step - first.step)

    def elapsed_seconds(self, now: float) -> float:
        """Since the first start, without the times when nobody trained."""
        running = max(0.0, now - self.time) if self.worker and not self.ending else 0.0
        return self._seconds_of_earlier_starts + self._seconds_of_this_start + running

    def seconds_left(self, now: float) -> float | None:
        """Until the last step; None if nothing tells."""
        if self.ending or not self._timed or not self.total_steps:
            return None
        since_last_event = max(0.0, now - self.time)
        return max(0.0, (self.total_steps - self.step) * self.seconds_per_step - since_last_event)

    @property
    def best(self) -> Saved | None:
        """The state with the lowest held-out loss, where such are kept."""
        return self._bests[-1] if self._bests else None

    @property
    def _is_evaluating(self) -> bool:
        return self.phase is not None and self.phase.phase == EVALUATION

    def recent_mean(self, metric: str) -> float | None:
        """The mean over the last steps' pairs; None if no step had it, as a finite number."""
        steps = [step for step in self.recent if isfinite(step.metrics.get(metric, nan))]
        pairs = sum(step.pairs for step in steps)
        return sum(step.metrics[metric] * step.pairs for step in steps) / pairs if pairs else None

    # --- events that change more than one thing --------------------------------------------------

    def _take_step(self, event: StepDone) -> None:
        self.is_under_way, self.step, self.last_step = True, event.step, event
        self.phase = None
        self.recent.append(event)
        if event.is_skipped:
            self.skipped_steps.append(event.step)
        self._timed.append(event)
        for metric, value in event.metrics.items():
            self.trained[metric].add(event.step, value)
        self.trained["learning_rate"].add(event.step, event.learning_rate)
        if event.seconds:
            self.trained["pairs_per_second"].add(event.step, event.pairs / event.seconds)
        self.weights_moved = event.metrics.get("weights_moved", self.weights_moved)
        grad_clip = self.plan.setting("train.grad_clip") if self.plan else None
        grad_norm = event.metrics.get("grad_norm")
        if grad_clip is not None and grad_norm is not None:
            self.trained["clipped"].add(event.step, grad_norm > grad_clip)

    def _take_evaluation(self, event: Evaluated) -> None:
        self.is_under_way, self.held_out, self.phase = True, event, None
        if self.held_out_start is None:
            self.held_out_start = event
        for metric, value in event.metrics.items():
            self.evaluated[metric].add(event.step, value)

    def _go_back(self, event: Resumed) -> None:
        """Forget what lies after the state that training goes on from; it will come again."""
        self.is_under_way, self.step = True, event.step
        for series in (*self.trained.values(), *self.evaluated.values()):
            series.cut(event.step)
        del self.skipped_steps[bisect_right(self.skipped_steps, event.step) :]
        while self.recent and self.recent[-1].step > event.step:
            self.recent.pop()
        self.last_step = self.recent[-1] if self.recent else None
        if self.held_out is not None and self.held_out.step > event.step:
            self.held_out = None
        if self.sampled is not None and self.sampled.step > event.step:
            self.sampled = None
        while self._bests and self._bests[-1].step > event.step:
            self._bests.pop()
