"""Events of a run: the only interface between a run and its observers.

The file `events.jsonl` of a run holds one JSON object per line. The worker appends to it (the main
rank only); when no worker is alive, the launcher appends how it ended. While a worker trains, the
agent, an export and the launcher of the trackers append only events of their own. The panel,
trackers and comparisons read.

A field is *reproducible* (a resumed run has the same bits as an uninterrupted one) or not (times,
speeds, memory). `StepDone.metrics`, `Evaluated.metrics` and `Evaluated.groups` are reproducible.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypedDict

from dpo_cli.errors import DpoError
from dpo_cli.run.event_lines import STEP_DONE, complete_lines, valid_lines
from dpo_cli.run.plan import Plan
from dpo_cli.run.typed_json import field_converters


@dataclass(frozen=True, kw_only=True)
class Event:
    """One line of the stream.

    Attributes:
        time: wall-clock seconds since the epoch, for people to read.
        elapsed_seconds: monotonic seconds since the writer started. Durations are computed from
            it, because the wall clock can jump.
    """

    registry: ClassVar[dict[str, type[Event]]] = {}

    time: float = field(default_factory=time.time)
    elapsed_seconds: float = 0.0

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        Event.registry[cls.__name__] = cls


EVALUATION = "evaluation"
"""Name of the phase that evaluates the held-out pairs, before the first step or between steps."""

ACCURACY = "rewards/accuracies"
"""Name of the share of pairs with the higher reward for chosen; a tie counts half. Metrics of a
policy that equals its reference do not have it: all pairs tie."""
TIES = "rewards/ties"
"""Name of the share of pairs whose rewards differ by no more than rounding."""
RANKING = "logps/accuracies"
"""Name of the share of pairs with the higher policy log-prob for chosen."""
ACCURACIES = (ACCURACY, RANKING)
COMPARED_METRICS = (*ACCURACIES, "loss", "rewards/margins", "margin_per_token")
"""Metrics of each held-out pair in which models and runs are compared."""


@dataclass(frozen=True, kw_only=True)
class WorkerStarted(Event):
    """A worker process started. `hosts` has the host name of each rank, this one included."""

    pid: int
    device: str
    device_name: str
    dtype: str
    versions: dict[str, str]
    hosts: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Progress(Event):
    """Progress of a phase that takes a while, for example encoding the pairs."""

    phase: str
    done: int
    total: int
    unit: str


@dataclass(frozen=True, kw_only=True)
class Planned(Event):
    """All inputs are read and the run is planned; `plan` is also the content of `plan.json`."""

    plan: Plan


@dataclass(frozen=True, kw_only=True)
class Resumed(Event):
    """Training continues after `optimizer_step`; earlier lines about later steps are void.

    Attributes:
        checkpoint: name of the loaded checkpoint; empty if the run starts from step 0.
        passed_over: one sentence for each newer checkpoint that cannot be used.
        changes: settings that differ from the previous start.
    """

    optimizer_step: int
    step: int
    checkpoint: str
    passed_over: tuple[str, ...] = ()
    changes: tuple[str, ...] = ()

    @property
    def last_valid_step(self) -> int:
        """Last optimizer step whose earlier lines still count; -1 if none does.

        Without a checkpoint even the evaluation before the first step (step 0) is repeated.
        """
        return self.optimizer_step if self.checkpoint else -1


@dataclass(frozen=True, kw_only=True)
class StepDone(Event):
    """One optimizer step, which ends a global batch of micro-batches.

    Attributes:
        step: micro-batches done, counted from 1 as in MiniMind's script.
        losses: loss of each micro-batch, before the division by `accumulation_steps`.
        metrics: means over the pairs of the global batch: loss, rewards/chosen, rewards/rejected,
            rewards/margins, rewards/accuracies (a margin within rounding of 0 is a tie and counts
            half; left out if all pairs tie), rewards/ties (share of ties), logps/chosen and
            logps/rejected (reduced as the profile says), margin_per_token and kl (nats per response
            token; only if the loss needs a reference), grad_norm (before clipping), aux_loss
            (mixtures of experts only), and weights_moved at the first step, each log_interval and
            the last step: the share of weights whose half-precision value differs from the starting
            weights.
        tokens: positions computed, padding included.
        padding_tokens: positions that are padding.
        is_skipped: the gradient was not finite and the weights were not updated.
        cpu_seconds: CPU time of the main thread; 0 if a GPU computes.
        rank_seconds: computing time of each rank, without waiting for other ranks; empty with one
            rank.
        rank_bytes: memory of each rank, on the GPU if it has one; empty with one rank.
    """

    step: int
    optimizer_step: int
    epoch: int
    learning_rate: float
    losses: tuple[float, ...]
    metrics: dict[str, float]
    pairs: int
    tokens: int
    padding_tokens: int
    seconds: float
    process_bytes: int
    device_bytes: int
    is_skipped: bool = False
    cpu_seconds: float = 0.0
    rank_seconds: tuple[float, ...] = ()
    rank_bytes: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Evaluated(Event):
    """Evaluation of the policy on the held-out pairs.

    Attributes:
        metrics: means over all pairs: those of `StepDone` that are per pair; logps/accuracies, the
            share of pairs whose chosen answer is more likely than the rejected one under the
            policy; ref_logps/accuracies, the same under the reference; token_logps/chosen and
            entropy, nats per response token.
        groups: by group name ("all", "language/...", "length/..."), the number of "pairs", the
            same means, and the ends of their 95 % intervals as NAME/low and NAME/high.
    """

    step: int
    optimizer_step: int
    metrics: dict[str, float]
    pairs: int
    seconds: float
    groups: dict[str, dict[str, float]] = field(default_factory=dict)


class SampleTexts(TypedDict):
    """Held-out prompt with the greedy answers of policy and reference, which may be cut.

    `place` is the name of the pair's row, `prompt` the rendered text.
    """

    place: str
    prompt: str
    policy: str
    reference: str


class Sample(SampleTexts, total=False):
    """Sample with the last user turn, without the markup of the chat template."""

    question: str


@dataclass(frozen=True, kw_only=True)
class Sampled(Event):
    """Answers of policy and reference after an evaluation."""

    step: int
    optimizer_step: int
    samples: tuple[Sample, ...]
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Saved(Event):
    """A checkpoint was committed.

    `is_best`: no earlier checkpoint has a lower held-out loss; it is kept until a later one has.
    """

    step: int
    optimizer_step: int
    checkpoint: str
    weights: str
    size_bytes: int
    seconds: float
    is_best: bool = False


@dataclass(frozen=True, kw_only=True)
class Alert(Event):
    """Message for the user while the run trains; `code` is stable."""

    code: str
    message: str
    remedy: str = ""


@dataclass(frozen=True, kw_only=True)
class Stopped(Event):
    """The run saved and stopped on request; `reason` is "interrupted" or "terminated"."""

    reason: str
    step: int
    optimizer_step: int


@dataclass(frozen=True, kw_only=True)
class Completed(Event):
    """The run is finished and saved. `reason` says why before the last step, else it is empty."""

    step: int
    optimizer_step: int
    weights: str
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Failed(Event):
    """The run ended with an error that the user can act on (see `dpo_cli.errors`)."""

    message: str
    remedy: str = ""
    details: tuple[str, ...] = ()
    exit_code: int = 1

    @classmethod
    def from_error(cls, error: DpoError) -> Failed:
        """Make the event that records `error`."""
        return cls(**error.to_dict())

    def to_error(self) -> DpoError:
        """Return the recorded error, to raise it in another process."""
        return DpoError.from_dict(dataclasses.asdict(self))


@dataclass(frozen=True, kw_only=True)
class RankEnded(Event):
    """One of several ranks failed; written by the agent.

    `signal` is 0 if no signal ended the rank. `message` is the rank's own explanation, if it could
    still write one.
    """

    rank: int
    host: str
    pid: int
    exit_code: int
    signal: int = 0
    message: str = ""


@dataclass(frozen=True, kw_only=True)
class WorkerEnded(Event):
    """The worker process ended; written by the launcher. `signal` is 0 if no signal ended it."""

    exit_code: int
    signal: int = 0


@dataclass(frozen=True, kw_only=True)
class Exported(Event):
    """`dpo export` wrote the weights to `path`.

    `rounding` is "nearest", or "stochastic" with `seed`. `stops` are the texts of the tokens at
    which generation stops, `commands` the shell commands that use the export, by program.
    """

    path: str
    sha256: str
    dtype: str
    optimizer_step: int
    rounding: str = "nearest"
    seed: int | None = None
    stops: tuple[str, ...] = ()
    commands: dict[str, str] = field(default_factory=dict)


def to_json(event: Event) -> str:
    """Return the event as one line of JSON, floats in full precision."""
    return json.dumps(
        {"event": type(event).__name__, **dataclasses.asdict(event)}, ensure_ascii=False
    )


def from_json(line: str) -> Event | None:
    """Parse one line; None if it is damaged or this version does not have the kind of event."""
    try:
        fields = json.loads(line)
        kind: Any = Event.registry[fields.pop("event")]
        if kind is Planned:
            fields["plan"] = Plan.from_dict(fields["plan"])
        known = field_converters(kind)
        event: Event = kind(**{k: known[k](value) for k, value in fields.items() if k in known})
        return event
    except (DpoError, ValueError, AttributeError, KeyError, TypeError, RecursionError):
        return None


class EventReader:
    """Follows a stream that may still grow; an incomplete last line is read when it is complete.

    Args:
        path: the stream.
        start: offset of the first line to read.
    """

    def __init__(self, path: Path, start: int = 0) -> None:
        self._path = path
        self._offset = start

    def read_new(self) -> Iterator[Event]:
        """Yield the events appended since the last call; skip lines that are no events."""
        for start, line in complete_lines(self._path, self._offset):
            self._offset = start + len(line)
            if event := parse_line(line):
                yield event


def history(path: Path) -> Iterator[Event]:
    """Yield the valid events: of steps that a resume repeated, only the last repetition."""
    return filter(None, (parse_line(line) for _, line in valid_lines(path)))


def without_early_steps(path: Path, keep: int) -> Iterator[Event]:
    """Yield the events, but of successive `StepDone` events only the last `keep`.

    Nearly all lines are steps. They are not parsed, so that a long stream takes little time.
    """
    steps: deque[bytes] = deque(maxlen=keep)
    for _, line in complete_lines(path):
        if line.startswith(STEP_DONE):
            steps.append(line)
            continue
        yield from filter(None, map(parse_line, [*steps, line]))
        steps.clear()
    yield from filter(None, map(parse_line, steps))


def parse_line(line: bytes) -> Event | None:
    """Parse one line; see `from_json`."""
    return from_json(line.decode(errors="replace"))
