"""Tests of the replay: pace, speed factor and no wait between two starts."""

from __future__ import annotations

import dataclasses

import pytest

from dpo_cli.run.events import Event, WorkerEnded
from dpo_cli.ui.terminal.replay import Replay
from tests.support import story


class Clock:
    seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


def later(event: Event, days: float) -> Event:
    return dataclasses.replace(event, time=event.time + days * 86_400)


def test_events_come_when_they_are_due() -> None:
    clock = Clock()
    replay = Replay(list(story.preparation()), 2.0, clock)
    assert len(list(replay.read_new())) == 1
    clock.seconds += 1.1
    assert len(list(replay.read_new())) == 2
    assert list(replay.read_new()) == []
    assert replay.now() == pytest.approx(story.STARTED + 2.2)
    assert not replay.is_over()
    clock.seconds += 1.0
    assert len(list(replay.read_new())) == 1
    assert replay.is_over()


def test_the_pause_between_two_starts_is_left_out() -> None:
    clock = Clock()
    first, second = list(story.preparation()), [later(e, 1.0) for e in story.preparation()]
    replay = Replay([*first, WorkerEnded(exit_code=130), *second], 1.0, clock)
    clock.seconds += 3.5
    assert len(list(replay.read_new())) == 6
    assert replay.now() == pytest.approx(story.STARTED + 86_400 + 0.5)
    clock.seconds += 3.0
    list(replay.read_new())
    assert replay.is_over()
