"""A run in one line: what state it is in, how far it came, what it takes."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from dpo_cli.run.directory import RunDirectory
from dpo_cli.run.events import (
    Completed,
    Evaluated,
    Event,
    Failed,
    Planned,
    Resumed,
    Saved,
    StepDone,
    Stopped,
    WorkerEnded,
    WorkerStarted,
    from_json,
)

_STEP = b'{"event": "StepDone"'
_RECENT_STEPS = 20
"""Of so many steps the loss is the mean."""


class RunState(StrEnum):
    """What became of a run."""

    TRAINING = "training"
    COMPLETED = "completed"
    STOPPED = "stopped"
    FAILED = "failed"
    KILLED = "killed"


@dataclass(frozen=True)
class RunSummary:
    """A run in one line; None where nothing is known yet."""

    name: str
    state: RunState
    holder: str | None
    """Who trains it."""
    started: float | None
    """Wall-clock seconds since the epoch."""
    step: int
    total_steps: int | None
    loss: float | None
    held_out_accuracy: float | None
    best_step: int | None
    """Of the best state on the held-out pairs, where that is kept."""
    seconds: float
    """Of all its starts together."""
    size_bytes: int


def summarize(run: RunDirectory) -> RunSummary:
    """Read a run's lock, its mark of completion and its stream."""
    holder = run.holder()
    tally = _Tally()
    tally.read(run.events_path)
    losses = [step.metrics["loss"] for step in tally.steps]
    evaluation = tally.evaluation
    return RunSummary(
        name=run.name,
        state=_state(run, holder, tally.ending),
        holder=holder,
        started=tally.started,
        step=tally.step,
        total_steps=tally.total_steps,
        loss=sum(losses) / len(losses) if losses else None,
        held_out_accuracy=evaluation.metrics.get("rewards/accuracies") if evaluation else None,
        best_step=tally.bests[-1].step if tally.bests else None,
        seconds=tally.seconds,
        size_bytes=_size(run.path),
    )


class _Tally:
    """Goes through a stream once; of the steps, which are nearly all of it, it reads the last."""

    def __init__(self) -> None:
        self.started: float | None = None
        self.total_steps: int | None = None
        self.steps: deque[StepDone] = deque(maxlen=_RECENT_STEPS)
        self.step = 0
        self.evaluation: Evaluated | None = None
        self.bests: list[Saved] = []
        self.ending: Event | None = None
        self.seconds = 0.0
        self._seconds_before = 0.0
        self._unread: deque[bytes] = deque(maxlen=_RECENT_STEPS)

    def read(self, path: Path) -> None:
        """Take in a stream; one that is being written may end within a line."""
        if not path.exists():
            return
        with path.open("rb") as lines:
            for line in lines:
                if not line.endswith(b"\n"):
                    break
                if line.startswith(_STEP):
                    self._unread.append(line)
                else:
                    self._read_steps()
                    self._take(line)
        self._read_steps()

    def _read_steps(self) -> None:
        while self._unread:
            self._take(self._unread.popleft())

    def _take(self, line: bytes) -> None:
        event = from_json(line.decode(errors="replace"))
        if event is None:
            return
        if self.started is None:
            self.started = event.time
        match event:
            case WorkerStarted():
                self._seconds_before, self.ending = self.seconds, None
            case Planned():
                self.total_steps = event.plan.steps.micro_batches
            case Resumed():
                self._go_back(event)
            case StepDone():
                self.steps.append(event)
                self.step = event.step
            case Evaluated():
                self.evaluation = event
            case Saved(is_best=True):
                self.bests.append(event)
            case Completed() | Stopped() | Failed():
                self.ending = event
            case WorkerEnded() if self.ending is None:
                self.ending = event
        # The largest: who appends after the worker's end has a clock of its own, near zero.
        self.seconds = max(self.seconds, self._seconds_before + event.elapsed_seconds)

    def _go_back(self, resumed: Resumed) -> None:
        kept = [step for step in self.steps if step.optimizer_step <= resumed.optimizer_step]
        self.steps = deque(kept, _RECENT_STEPS)
        self.step = resumed.step
        if self.evaluation and self.evaluation.optimizer_step > resumed.optimizer_step:
            self.evaluation = None
        self.bests = [e for e in self.bests if e.optimizer_step <= resumed.optimizer_step]


def _state(run: RunDirectory, holder: str | None, ending: Event | None) -> RunState:
    if holder is not None:
        return RunState.TRAINING
    if run.is_completed:
        return RunState.COMPLETED
    match ending:
        case Stopped():
            return RunState.STOPPED
        case Failed() | WorkerEnded(signal=0):
            return RunState.FAILED
    return RunState.KILLED


def _size(directory: Path) -> int:
    """Bytes of all files; those that vanish meanwhile count nothing."""
    total = 0
    for path in directory.rglob("*"):
        try:
            total += path.lstat().st_size if path.is_file() else 0
        except FileNotFoundError:
            continue
    return total
