"""State of a run, computed from its events one by one: for the panel, reports and `dpo runs`."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from math import isfinite, nan

from dpo_cli.intervals import HIGH, LOW
from dpo_cli.run.events import (
    ACCURACY,
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
"""Number of optimizer steps in the means of current metrics."""


class RunState(StrEnum):
    """State of a run, in the word that users see."""

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
    OTHER_VERSION = "other version"
    """Written by another version of dpo, which cannot be read."""
    UNREADABLE = "cannot be read"
    """This user may not read the run, or its files are no regular files."""
    UNKNOWN = "unknown"
    """The stream has no end, and the lock cannot be read, so a process may be training."""


@dataclass
class RunView:
    """State of a run after the events so far.

    Only `take`, `expect_start` and setting `is_stopping` change it. Memory is bounded, except for
    skipped steps and best checkpoints; an event costs O(1).
    """

    started: float | None = None
    """Wall-clock seconds since the epoch of the first event."""

    plan: Plan | None = None
    worker: WorkerStarted | None = None
    phase: Progress | None = None
    """Progress of a phase that is not training."""
    last_step: StepDone | None = None
    recent: deque[StepDone] = field(default_factory=lambda: deque(maxlen=RECENT_STEPS))
    """Last optimizer steps, without those that a resume takes back, over all starts."""
    held_out: Evaluated | None = None
    held_out_start: Evaluated | None = None
    """First evaluation, to compare later ones with."""
    skipped_steps: list[int] = field(default_factory=list)
    """Steps without an update because the gradient was not finite, ascending."""
    weights_moved: float | None = None
    """Share of weights that differ from the start, measured after `weights_moved_step`."""
    weights_moved_step: int = 0
    """Optimizer step; the share is measured every `train.log_interval` only."""
    saved: Saved | None = None
    sampled: Sampled | None = None
    sampled_start: Sampled | None = None
    """First answers, to compare later ones with."""
    alerts: dict[str, Alert] = field(default_factory=dict)
    """Newest alert of each code, in the order of their events."""
    earlier_alerts: set[str] = field(default_factory=set)
    """Codes of the alerts from before the last start, which may no longer hold."""
    ending: Completed | Stopped | Failed | WorkerEnded | None = None
    lost_ranks: list[RankEnded] = field(default_factory=list)
    """Ranks that failed since the last start, in the order of their events."""
    is_under_way: bool = False
    """True once this start trains, or evaluates before the first step."""
    is_stopping: bool = False
    """True if the run was asked to stop; set by the caller that asked, there is no event for it."""
    step: int = 0
    """Number of micro-batches done."""
    trained: defaultdict[str, Series] = field(default_factory=lambda: defaultdict(Series))
    """Training curves by metric, and "learning_rate", "pairs_per_second" and "clipped" (0 or 1)."""
    evaluated: defaultdict[str, Series] = field(default_factory=lambda: defaultdict(Series))
    """Curves of the held-out pairs by metric, with the ends of the accuracy's 95 % interval."""
    events: int = 0
    """Number of events."""
    time: float = 0.0
    """Wall-clock seconds since the epoch of the last event."""
    _timed: deque[StepDone] = field(default_factory=lambda: deque(maxlen=RECENT_STEPS))
    """Last steps of this start. `elapsed_seconds` of another start counts from another zero."""
    _evaluating: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT_STEPS))
    """Seconds of this start's evaluations before each of the steps in `_timed`."""
    _evaluation_seconds: float = 0.0
    _bests: list[Saved] = field(default_factory=list)
    _alerts_at_end: set[str] = field(default_factory=set)
    """Codes of the alerts since the last other event: the launcher writes its alerts about a start
    before the worker writes `WorkerStarted`."""
    _seconds_of_earlier_starts: float = 0.0
    _seconds_of_this_start: float = 0.0

    @classmethod
    def of(cls, events: Iterable[Event]) -> RunView:
        """Build the view of a sequence of events."""
        view = cls()
        for event in events:
            view.take(event)
        return view

    def take(self, event: Event) -> None:
        """Update the view with the next event."""
        if self.started is None:
            self.started = event.time
        self.time = event.time
        self.events += 1
        if isinstance(event, WorkerStarted):
            self.expect_start()
            self.worker = event
        if not isinstance(event, Alert):
            self._alerts_at_end.clear()
        # Not simply the newest: a writer that appends after the worker's end started its own clock.
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
                self._evaluation_seconds += event.seconds
                self.sampled_start = self.sampled_start or event
            case Saved():
                self.saved = event
                if event.is_best:
                    self._bests.append(event)
            case Alert():
                self.alerts.pop(event.code, None)
                self.alerts[event.code] = event
                self._alerts_at_end.add(event.code)
                self.earlier_alerts.discard(event.code)
            case RankEnded():
                self.lost_ranks.append(event)
            case Completed() | Stopped() | Failed():
                self.ending = event
            case WorkerEnded() if self.ending is None:  # the worker wrote no ending itself
                self.ending = event

    def expect_start(self) -> None:
        """Reset the state of the last start, because a new one begins."""
        self._seconds_of_earlier_starts += self._seconds_of_this_start
        self._seconds_of_this_start = 0.0
        self.worker = self.phase = self.ending = None
        self.is_under_way = self.is_stopping = False
        self.earlier_alerts = self.alerts.keys() - self._alerts_at_end
        self.lost_ranks = []
        self._timed.clear()
        self._evaluating.clear()
        self._evaluation_seconds = 0.0

    # --- derived values --------------------------------------------------------------------------

    @property
    def state(self) -> RunState:
        """State of the run according to its events."""
        match self.ending:
            case Completed():
                return RunState.COMPLETED
            case Stopped():
                return RunState.STOPPED
            case WorkerEnded(signal=number) if number:
                return RunState.KILLED
            case Failed() | WorkerEnded():
                return RunState.FAILED
        if self.is_stopping:
            return RunState.STOPPING
        if self.worker is None:
            return RunState.STARTING
        if not self.is_under_way:
            return RunState.EVALUATING if self._is_evaluating else RunState.PREPARING
        if self._is_evaluating:
            return RunState.EVALUATING
        if self.is_at_the_end:
            has_old_evaluation = self.held_out is not None and self.held_out.step < self.step
            return RunState.EVALUATING if has_old_evaluation else RunState.SAVING
        return RunState.TRAINING

    @property
    def total_steps(self) -> int:
        """Number of planned micro-batches; 0 before the run is planned."""
        return self.plan.steps.micro_batches if self.plan else 0

    @property
    def seconds_per_step(self) -> float:
        """Seconds per micro-batch over the last steps, saves and evaluations included.

        Measured by the worker's monotonic clock.
        """
        first, last = self._timed[0], self._timed[-1]
        if first is last:
            return last.seconds / len(last.losses)
        return (last.elapsed_seconds - first.elapsed_seconds) / (last.step - first.step)

    def elapsed_seconds(self, now: float) -> float:
        """Seconds from the first start to the wall-clock time `now`, without pauses."""
        running = max(0.0, now - self.time) if self.worker and not self.ending else 0.0
        return self._seconds_of_earlier_starts + self._seconds_of_this_start + running

    def seconds_left(self, now: float) -> float | None:
        """Estimated seconds until the last evaluation; None before this start has done a step.

        Evaluations count as long as the newest one, with its answers.
        """
        if self.ending or not self._timed or not self.total_steps:
            return None
        # Apart from the steps: an evaluation takes minutes, and the last steps have few or none.
        evaluating = self._evaluating[-1] - self._evaluating[0]
        covered = self._timed[-1].step - self._timed[0].step
        per_step = self.seconds_per_step - (evaluating / covered if covered else 0.0)
        left = (self.total_steps - self.step) * max(0.0, per_step)
        left += self._evaluations_left() * self._seconds_per_evaluation
        return max(0.0, left - max(0.0, now - self.time))

    def _evaluations_left(self) -> float:
        """Number of evaluations that are left; a part for one that is under way."""
        if self.held_out is None or self.plan is None:
            return 0.0
        if self.is_at_the_end:
            left = float(self.held_out.step < self.step)
        else:
            interval = self.plan.setting("eval.interval") or self.total_steps
            due = self.total_steps // interval - self.step // interval
            left = float(due + bool(self.total_steps % interval))  # the last step evaluates, too
            left += self._is_evaluating
        if self._is_evaluating and self.phase and self.phase.total:
            left -= self.phase.done / self.phase.total
        return max(0.0, left)

    @property
    def _seconds_per_evaluation(self) -> float:
        answers = self.sampled.seconds if self.sampled else 0.0
        return answers + (self.held_out.seconds if self.held_out else 0.0)

    @property
    def is_at_the_end(self) -> bool:
        """Return True after the last step: only an evaluation and the save are left."""
        return bool(self.total_steps) and self.step == self.total_steps

    @property
    def best(self) -> Saved | None:
        """Checkpoint with the lowest held-out loss; None if the run keeps none."""
        return self._bests[-1] if self._bests else None

    @property
    def held_out_change(self) -> tuple[Evaluated, Evaluated] | None:
        """First and newest evaluation; None before one that follows a step."""
        start, now = self.held_out_start, self.held_out
        return None if start is None or now is None or now.step <= start.step else (start, now)

    @property
    def _is_evaluating(self) -> bool:
        return self.phase is not None and self.phase.phase == EVALUATION

    def recent_mean(self, metric: str) -> float | None:
        """Mean over the pairs of the last steps; None if no step has a finite value."""
        steps = [step for step in self.recent if isfinite(step.metrics.get(metric, nan))]
        pairs = sum(step.pairs for step in steps)
        return sum(step.metrics[metric] * step.pairs for step in steps) / pairs if pairs else None

    # --- events with several effects -------------------------------------------------------------

    def _take_step(self, event: StepDone) -> None:
        self.is_under_way, self.step, self.last_step = True, event.step, event
        self.phase = None
        self.recent.append(event)
        if event.is_skipped:
            self.skipped_steps.append(event.step)
        self._timed.append(event)
        self._evaluating.append(self._evaluation_seconds)
        for metric, value in event.metrics.items():
            self.trained[metric].add(event.step, value)
        self.trained["learning_rate"].add(event.step, event.learning_rate)
        if event.seconds:
            self.trained["pairs_per_second"].add(event.step, event.pairs / event.seconds)
        if "weights_moved" in event.metrics:
            self.weights_moved = event.metrics["weights_moved"]
            self.weights_moved_step = event.optimizer_step
        grad_clip = self.plan.setting("train.grad_clip") if self.plan else None
        grad_norm = event.metrics.get("grad_norm")
        if grad_clip is not None and grad_norm is not None:
            self.trained["clipped"].add(event.step, grad_norm > grad_clip)

    def _take_evaluation(self, event: Evaluated) -> None:
        self.is_under_way, self.held_out, self.phase = True, event, None
        self._evaluation_seconds += event.seconds
        if self.held_out_start is None:
            self.held_out_start = event
        for metric, value in event.metrics.items():
            self.evaluated[metric].add(event.step, value)
        ends = {ACCURACY + LOW, ACCURACY + HIGH}
        for metric in ends & event.groups.get("all", {}).keys():
            self.evaluated[metric].add(event.step, event.groups["all"][metric])

    def _go_back(self, event: Resumed) -> None:
        """Remove everything after the checkpoint that was loaded: those steps are repeated."""
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
        if self.weights_moved_step > event.optimizer_step:
            self.weights_moved, self.weights_moved_step = None, 0
        while self._bests and self._bests[-1].step > event.step:
            self._bests.pop()
