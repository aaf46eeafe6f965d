"""Tests of the event stream: round trips, damaged lines, torn tails, repeated steps."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest

from dpo_cli.run.event_writer import EventWriter, drop_torn_tail
from dpo_cli.run.events import (
    Alert,
    Completed,
    Evaluated,
    Event,
    EventReader,
    Exported,
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
    from_json,
    history,
    to_json,
    without_early_steps,
)
from dpo_cli.run.plan import Plan
from tests.support.story import PLAN


def step_done(optimizer_step: int, **fields: Any) -> StepDone:
    values: dict[str, Any] = {
        "step": optimizer_step,
        "optimizer_step": optimizer_step,
        "epoch": 1,
        "learning_rate": 1e-8 / 3,
        "losses": (0.1 + 0.2, math.log(2)),
        "metrics": {"loss": 0.1 + 0.2},
        "pairs": 4,
        "tokens": 100,
        "padding_tokens": 10,
        "seconds": 0.5,
        "process_bytes": 2**30,
        "device_bytes": 0,
    }
    return StepDone(**(values | fields))


EVENTS = [
    WorkerStarted(pid=1, device="cpu", device_name="x", dtype="float32", versions={"torch": "2"}),
    Progress(phase="encoding", done=1, total=2, unit="pairs"),
    Planned(plan=PLAN),
    Resumed(optimizer_step=1, step=2, checkpoint="step-00000001", passed_over=("a", "b")),
    step_done(1),
    Evaluated(
        step=1,
        optimizer_step=1,
        metrics={"loss": 0.69},
        pairs=2,
        seconds=0.1,
        groups={"all": {"pairs": 2.0, "loss": 0.69}},
    ),
    Sampled(
        step=1,
        optimizer_step=1,
        samples=({"place": "line 1", "prompt": "a", "policy": "b", "reference": "c"},),
        seconds=0.1,
    ),
    Saved(step=1, optimizer_step=1, checkpoint="g", weights="w", size_bytes=3, seconds=0.1),
    Alert(code="slow", message="偏好", remedy="r"),
    Stopped(reason="interrupted", step=1, optimizer_step=1),
    Completed(step=1, optimizer_step=1, weights="rlhf_512.pth"),
    Failed(message="m", remedy="r", details=("line 1", "line 2"), exit_code=2),
    RankEnded(rank=1, host="a", pid=2, exit_code=137, signal=9, message="m"),
    WorkerEnded(exit_code=137, signal=9),
    Exported(path="p", sha256="0", dtype="float16", optimizer_step=1),
]


def test_the_list_above_has_every_kind() -> None:
    assert {type(event).__name__ for event in EVENTS} == set(Event.registry)


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_round_trip_keeps_every_bit(event: Event) -> None:
    line = to_json(event)
    assert "\n" not in line
    assert from_json(line) == event


def test_unknown_kinds_and_fields_are_left_out() -> None:
    assert from_json('{"event": "Danced", "time": 1.0}') is None
    line = json.dumps(json.loads(to_json(EVENTS[-1])) | {"later": 1})
    assert from_json(line) == EVENTS[-1]


def test_not_a_number_survives() -> None:
    event = from_json(to_json(step_done(1, metrics={"loss": math.nan, "grad_norm": math.inf})))
    assert isinstance(event, StepDone)
    assert math.isnan(event.metrics["loss"])
    assert event.metrics["grad_norm"] == math.inf


def test_a_reader_gets_each_event_once_and_waits_for_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    reader = EventReader(path)
    assert list(reader.read_new()) == []
    line = to_json(EVENTS[0]) + "\n"
    path.write_text(line + line[:20])
    assert list(reader.read_new()) == [EVENTS[0]]
    assert list(reader.read_new()) == []
    with path.open("a") as file:
        file.write(line[20:])
    assert list(reader.read_new()) == [EVENTS[0]]


def test_a_torn_tail_is_dropped_by_the_next_writer(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text(to_json(step_done(1)) + "\n" + '{"event": "StepDo')
    reader = EventReader(path)
    list(reader.read_new())
    writer = EventWriter(path)
    writer.append(step_done(2))
    writer.close()
    assert [event.optimizer_step for event in history(path) if isinstance(event, StepDone)] == [
        1,
        2,
    ]
    assert len(list(reader.read_new())) == 1


@pytest.mark.parametrize(
    ("before", "after"), [("", ""), ("torn", ""), ("a\n", "a\n"), ("a\nb", "a\n")]
)
def test_only_the_part_after_the_last_newline_is_cut(
    tmp_path: Path, before: str, after: str
) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text(before)
    drop_torn_tail(path)
    assert path.read_text() == after


def test_elapsed_seconds_come_from_the_writer_and_never_fall(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    writer = EventWriter(path)
    for _ in range(3):
        writer.append(dataclasses.replace(step_done(1), elapsed_seconds=-5.0))
    writer.close()
    elapsed = [event.elapsed_seconds for event in EventReader(path).read_new()]
    assert elapsed == sorted(elapsed)
    assert elapsed[0] >= 0


def test_history_has_repeated_steps_once(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    writer = EventWriter(path)
    evaluated = Evaluated(step=4, optimizer_step=4, metrics={}, pairs=1, seconds=0.1)
    for event in (
        *(step_done(k, tokens=1) for k in (1, 2, 3, 4)),
        evaluated,
        Resumed(optimizer_step=2, step=2, checkpoint="step-00000002"),
        *(step_done(k, tokens=2) for k in (3, 4)),
        evaluated,
    ):
        writer.append(event)
    writer.close()
    events = list(history(path))
    steps = [event for event in events if isinstance(event, StepDone)]
    assert [(event.optimizer_step, event.tokens) for event in steps] == [
        (1, 1),
        (2, 1),
        (3, 2),
        (4, 2),
    ]
    assert len([event for event in events if isinstance(event, Evaluated)]) == 1


def test_history_with_several_resumes(tmp_path: Path) -> None:
    """An earlier resume may go back further than a later one, or less far."""
    path = tmp_path / "events.jsonl"
    events = [
        *map(step_done, (1, 2, 3)),
        Resumed(optimizer_step=2, step=2, checkpoint="step-00000002"),
        *map(step_done, (3, 4)),
        Resumed(optimizer_step=1, step=1, checkpoint="step-00000001"),
        *map(step_done, (2, 3, 4)),
        Resumed(optimizer_step=3, step=3, checkpoint="step-00000003"),
        step_done(4),
    ]
    path.write_text("".join(to_json(event) + "\n" for event in events))
    assert list(history(path)) == [events[0], *events[6:9], *events[10:]]
    events.append(Resumed(optimizer_step=0, step=0, checkpoint=""))
    path.write_text("".join(to_json(event) + "\n" for event in events))
    assert list(history(path)) == [events[-1]]


def test_early_steps_are_left_out_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    saved = Saved(step=5, optimizer_step=5, checkpoint="c", weights="w", size_bytes=1, seconds=1.0)
    events = [EVENTS[0], *map(step_done, range(1, 6)), saved, *map(step_done, range(6, 10))]
    path.write_text("".join(to_json(event) + "\n" for event in events) + '{"event": "StepDone"')
    kept = list(without_early_steps(path, 2))
    assert kept == [EVENTS[0], events[4], events[5], saved, events[-2], events[-1]]


@pytest.mark.parametrize(
    "line",
    [
        "[" * 100_000,
        '"Alert"',
        '{"event": []}',
        '{"event": "Alert", "code": 1, "message": "m"}',
        '{"event": "Alert", "code": "c"}',
        to_json(step_done(1)).replace('"step": 1', '"step": true'),
        to_json(step_done(1)).replace('"step": 1', '"step": 1.5'),
        to_json(step_done(1)).replace('"metrics": {', '"metrics": {"kl": "low", '),
        to_json(step_done(1, losses=())).replace('"losses": []', '"losses": {}'),
        to_json(EVENTS[2]).replace('"version"', '"edition"'),
        to_json(EVENTS[2]).replace('"parameters": ', '"parameters": "many", "_": '),
    ],
)
def test_a_line_that_is_no_event_is_skipped(tmp_path: Path, line: str) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text(f"{line}\n{to_json(EVENTS[0])}\n")
    reader = EventReader(path)
    assert list(reader.read_new()) == [EVENTS[0]]
    assert list(history(path)) == list(without_early_steps(path, 1)) == [EVENTS[0]]


def test_a_plan_survives_a_broadcast_between_ranks() -> None:
    """The plan is not sent as JSON, so tuples stay tuples."""
    plan = dataclasses.replace(PLAN, other_environments=("torch 2",))
    assert Plan.from_dict(plan.to_dict()) == plan
