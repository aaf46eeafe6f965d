"""What can happen in a run: the only thing the outside learns of it.

A run's `events.jsonl` holds one JSON object a line. The worker appends (rank 0 only); once no
worker lives, the launcher appends how it ended. Beside the worker only those append who have
something to say of themselves: the agent, an export, the launcher of its trackers. All else, the
screen, trackers, comparisons, reads.

A field is either *reproducible* (the same bits in a resumed run as in one never interrupted) or not
(times, speeds, memory). `StepDone.metrics`, `Evaluated.metrics` and `Evaluated.groups` hold the
reproducible ones.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypedDict

from dpo_cli.files import open_for_appending


@dataclass(frozen=True, kw_only=True)
class Event:
    """One line of the stream.

    `time` is wall-clock seconds since the epoch, for people to read; durations are computed from
    `elapsed_seconds`, monotonic seconds since the worker started, because clocks jump.
    """

    registry: ClassVar[dict[str, type[Event]]] = {}

    time: float = field(default_factory=time.time)
    elapsed_seconds: float = 0.0

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        Event.registry[cls.__name__] = cls


EVALUATION = "evaluation"
"""The phase in which held-out pairs are scored, before the first step or between two."""


@dataclass(frozen=True, kw_only=True)
class WorkerStarted(Event):
    """A worker process began: what it runs on.

    `hosts` has one entry for each rank that trains together with it, itself included.
    """

    pid: int
    device: str
    device_name: str
    dtype: str
    versions: dict[str, str]
    hosts: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Progress(Event):
    """Something that takes a while, such as encoding the pairs, or an evaluation."""

    phase: str
    done: int
    total: int
    unit: str


@dataclass(frozen=True, kw_only=True)
class Planned(Event):
    """Everything is resolved; the same object as the run's `plan.json`."""

    plan: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Resumed(Event):
    """Training goes on after `optimizer_step`; later rows that stand before this one are void."""

    optimizer_step: int
    step: int
    generation: str
    passed_over: tuple[str, ...] = ()
    changes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class StepDone(Event):
    """One optimizer step, which closes a window of micro-batches.

    `step` counts micro-batches from 1, as the reference script does; `losses` has one entry for
    each micro-batch of the window (the loss before division by `accumulation_steps`). `tokens` are
    the positions computed, `padding_tokens` those among them that stand for nothing. `is_skipped`:
    the gradient was not finite, and the weights stayed as they were. Of each rank: `rank_seconds`
    it computed (without waiting for the others), `rank_bytes` of memory it holds, on its device
    where that is a card; both empty where one process trains alone.

    Metrics, means over the window's pairs: loss, rewards/chosen, rewards/rejected,
    rewards/margins, rewards/accuracies, logps/chosen, logps/rejected (reduced as the profile says),
    gap and kl (nats per response token; not with a loss that needs no reference); a margin within
    rounding of 0 is a tie, which no share of accuracies counts as right; grad_norm before
    clipping; balance, of mixtures of experts only; weights_moved at the first step, each
    log_interval and the last step, the share of weights whose half-precision value is no longer the
    checkpoint's.
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
    rank_seconds: tuple[float, ...] = ()
    rank_bytes: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Evaluated(Event):
    """The policy on the held-out pairs.

    Metrics, means over all pairs: those of `StepDone` that pairs have; logps/accuracies, the share
    whose chosen answer the policy finds likelier than the rejected one, and ref_logps/accuracies,
    the reference's; token_logps/chosen and entropy, nats per response token. `groups` holds, by
    the name of a group ("all", "language/...", "length/..."), its "pairs", the same means of them,
    and the ends of their 95 % intervals as NAME/low and NAME/high.
    """

    step: int
    optimizer_step: int
    metrics: dict[str, float]
    pairs: int
    seconds: float
    groups: dict[str, dict[str, float]] = field(default_factory=dict)


class Sample(TypedDict):
    """A held-out prompt (the name of the pair's row, the rendered text) and what both say to it.

    The answers are greedy, and may be cut.
    """

    place: str
    prompt: str
    policy: str
    reference: str


@dataclass(frozen=True, kw_only=True)
class Sampled(Event):
    """What policy and reference answer after an evaluation, side by side."""

    step: int
    optimizer_step: int
    samples: tuple[Sample, ...]
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Saved(Event):
    """A generation was committed; from here the run can be resumed.

    `is_best`: none before has a lower held-out loss, and it is kept until one has.
    """

    step: int
    optimizer_step: int
    generation: str
    weights: str
    size_bytes: int
    seconds: float
    is_best: bool = False


@dataclass(frozen=True, kw_only=True)
class Alert(Event):
    """Something the user should know; `code` is stable."""

    code: str
    message: str
    remedy: str = ""


@dataclass(frozen=True, kw_only=True)
class Stopped(Event):
    """The run was asked to stop and did, after saving: `reason` is interrupted or terminated."""

    reason: str
    step: int
    optimizer_step: int


@dataclass(frozen=True, kw_only=True)
class Completed(Event):
    """Every planned step is done and saved; or none that is left promised anything: `reason`."""

    step: int
    optimizer_step: int
    weights: str
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Failed(Event):
    """The run ended with an error the user can act on (see `dpo_cli.errors`)."""

    message: str
    remedy: str = ""
    details: tuple[str, ...] = ()
    exit_code: int = 1


@dataclass(frozen=True, kw_only=True)
class RankEnded(Event):
    """Written by the agent: one of several ranks failed (`signal` 0 if none killed it).

    `message` is what the rank itself said of it, if it still could.
    """

    rank: int
    host: str
    pid: int
    exit_code: int
    signal: int = 0
    message: str = ""


@dataclass(frozen=True, kw_only=True)
class WorkerEnded(Event):
    """Written by the launcher: how the worker process ended (`signal` 0 if it was none)."""

    exit_code: int
    signal: int = 0


@dataclass(frozen=True, kw_only=True)
class Exported(Event):
    """`dpo export` wrote the weights to `path`.

    `rounding` is nearest or stochastic, the latter with `seed`.
    """

    path: str
    sha256: str
    dtype: str
    optimizer_step: int
    rounding: str = "nearest"
    seed: int | None = None


def to_json(event: Event) -> str:
    """The event as one line of JSON, floats in full precision."""
    return json.dumps(
        {"event": type(event).__name__, **dataclasses.asdict(event)}, ensure_ascii=False
    )


def from_json(line: str) -> Event | None:
    """The event a line holds; None for a damaged line, or a kind this version does not know."""
    try:
        fields = json.loads(line)
        kind = Event.registry[fields.pop("event")]
        known = {f.name for f in dataclasses.fields(kind)}
        values: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in fields.items() if k in known
        }
        return kind(**values)
    except (ValueError, AttributeError, KeyError, TypeError):
        return None


class EventWriter:
    """Appends events to a stream; a line is written by one system call.

    Args:
        path: the stream.
        mend: cut off a torn last line first. Only for the holder of the run's lock: to anyone
            else, a line may look torn that is being written.
    """

    def __init__(self, path: Path, *, mend: bool = True) -> None:
        if mend:
            drop_torn_tail(path)
        self._descriptor = open_for_appending(path)
        self._started = time.monotonic()

    def append(self, event: Event) -> None:
        """Write one event, stamped with the seconds since this writer began."""
        elapsed_seconds = time.monotonic() - self._started
        stamped = dataclasses.replace(event, elapsed_seconds=elapsed_seconds)
        line = (to_json(stamped) + "\n").encode()
        written = os.write(self._descriptor, line)
        if written < len(line):  # a full disk took only the beginning: take that back
            os.ftruncate(self._descriptor, os.fstat(self._descriptor).st_size - written)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def flush(self) -> None:
        """Put what was appended on the disk, where a power loss leaves it."""
        os.fsync(self._descriptor)

    def close(self) -> None:
        """Flush the stream to the disk and close it."""
        self.flush()
        os.close(self._descriptor)


class Unheard:
    """What ranks that do not hold the run append to: only one tells."""

    def append(self, event: Event) -> None:
        """Nothing."""

    def flush(self) -> None:
        """Nothing."""


class EventReader:
    """Follows a stream that may still grow; half-written lines wait for their end."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def read_new(self) -> Iterator[Event]:
        """The events appended since the last call."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return
        complete, newline, _ = data.rpartition(b"\n")
        self._offset += len(complete) + len(newline)
        for line in complete.splitlines():
            if line and (event := from_json(line.decode(errors="replace"))) is not None:
                yield event


def history(path: Path) -> list[Event]:
    """The run as it counts: steps and evaluations that a resume did again appear once.

    A `Resumed` event makes the earlier rows after its step void: they were lost with the state and
    stand again, from the generation that the run went on from, behind it.
    """
    events: list[Event] = []
    for event in EventReader(path).read_new():
        if isinstance(event, Resumed):
            # Without a generation everything is done again, the evaluation before step 1 too.
            kept = event.optimizer_step if event.generation else -1
            events = [e for e in events if getattr(e, "optimizer_step", -1) <= kept]
        events.append(event)
    return events


def drop_torn_tail(path: Path) -> None:
    """Cut off a last line that a crash left without its newline.

    Raises:
        OSError: ELOOP, among others: nothing is cut off where a link leads.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
    except FileNotFoundError:
        return
    with open(descriptor, "r+b") as file:
        data = file.read()
        keep = data.rfind(b"\n") + 1
        if keep < len(data):
            file.truncate(keep)
