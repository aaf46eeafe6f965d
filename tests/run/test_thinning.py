"""Tests of long streams, which are thinned while they are read; some figures stay exact."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from dpo_cli.run import thinning
from dpo_cli.run.events import Event, Resumed, StepDone, history
from dpo_cli.run.thinning import ThinnedHistory, ThinnedReader
from dpo_cli.run.view import RunView
from tests.support import story


@pytest.fixture
def stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Run with a resume in the middle and a step without an update, thinned to a tenth."""
    monkeypatch.setattr(thinning, "_KEPT", 20)
    monkeypatch.setattr(thinning, "_BYTES_PER_STEP", 800)
    resumed = Resumed(optimizer_step=100, step=200, checkpoint="step-00000100")
    events = [
        *story.preparation(),
        *story.training(0, 260),
        story.at(500, resumed),
        *story.training(200, story.STEPS),
    ]
    events = [
        dataclasses.replace(event, is_skipped=event.step == 34)
        if isinstance(event, StepDone)
        else event
        for event in events
    ]
    return story.write(tmp_path, "run", *events).events_path


def others(events: Iterator[Event] | ThinnedHistory) -> list[Event]:
    return [event for event in events if not isinstance(event, StepDone)]


def test_a_short_stream_is_whole(stream: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thinning, "_KEPT", 2048)
    assert list(ThinnedHistory(stream)) == list(history(stream))


def test_what_is_left_out(stream: Path) -> None:
    thinned, every = ThinnedHistory(stream), list(history(stream))
    kept = list(thinned)
    steps = [event for event in every if isinstance(event, StepDone)]
    kept_steps = [event for event in kept if isinstance(event, StepDone)]
    assert len(kept_steps) < len(steps) / 2
    assert [event for event in every if event in kept] == kept, "in order, nothing else"
    assert others(thinned) == others(iter(every))
    totals = [sum(getattr(step, name) for step in steps)
              for name in ("pairs", "tokens", "padding_tokens")]  # fmt: skip
    list(thinned)
    assert [thinned.pairs, thinned.tokens, thinned.padding_tokens] == totals


@pytest.mark.parametrize("last_step", [None, 400, 300, 120, 10, 0])
def test_the_view_at_a_step(stream: Path, last_step: int | None) -> None:
    def until(events: Iterator[Event]) -> Iterator[Event]:
        for event in events:
            if last_step is not None and getattr(event, "step", 0) > last_step:
                return
            yield event

    thin = RunView.of(ThinnedHistory(stream, last_step))
    whole = RunView.of(until(history(stream)))
    for name in ("state", "step", "last_step", "recent", "held_out", "skipped_steps", "saved",
                 "weights_moved", "best", "plan"):  # fmt: skip
        assert getattr(thin, name) == getattr(whole, name), name
    assert thin.evaluated["loss"].points == whole.evaluated["loss"].points
    assert set(thin.trained["loss"].points) <= set(whole.trained["loss"].points)


def test_following_a_stream_after_its_thinned_past(stream: Path) -> None:
    lines = stream.read_bytes().splitlines(keepends=True)
    stream.write_bytes(b"".join(lines[:-9]) + lines[-9][:20])
    past = list(ThinnedHistory(stream))
    reader = ThinnedReader(stream)
    assert list(reader.read_new()) == past
    assert list(reader.read_new()) == []
    stream.write_bytes(b"".join(lines))
    assert list(reader.read_new()) == list(history(stream))[-9:]


def test_a_missing_stream(tmp_path: Path) -> None:
    assert list(ThinnedHistory(tmp_path / "events.jsonl")) == []
