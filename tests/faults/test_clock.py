"""Fault 26: the wall clock jumps a day forward and then a day back while a run trains."""

from __future__ import annotations

import re
import time
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest

from dpo_cli.run.directory import RunDirectory
from dpo_cli.run.event_writer import EventWriter
from dpo_cli.run.events import EventReader, StepDone
from dpo_cli.run.summary import summarize
from dpo_cli.run.view import RunState, RunView
from tests.faults.conftest import STEPS, arguments
from tests.support import story, workers
from tests.support.panel import PANEL
from tests.support.process_faults import DAY_SECONDS, clock_jumps
from tests.support.terminal import Terminal

JUMPS = {4: DAY_SECONDS, 8: -DAY_SECONDS}
A_JUMP_SECONDS = 60.0
"""Shorter than each jump of the clock, longer than the whole run."""


@pytest.fixture(scope="module")
def jumped(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """Run on a clock that jumped twice; read only."""
    run = workers.new_run(tmp_path_factory.mktemp("jumped"), arguments(shared))
    assert workers.work(run, partial(clock_jumps, JUMPS)) == 0
    times = [event.time for event in EventReader(run.events_path).read_new()]
    assert max(times) - min(times) > 1.9 * DAY_SECONDS
    return run


def test_the_run_is_unaffected(jumped: RunDirectory, whole: RunDirectory) -> None:
    workers.assert_equal(jumped, whole)
    events = list(EventReader(jumped.events_path).read_new())
    steps = [event for event in events if isinstance(event, StepDone)]
    assert [step.optimizer_step for step in steps] == list(range(1, STEPS + 1))
    assert all(0 < step.seconds < A_JUMP_SECONDS for step in steps)
    assert all(a.elapsed_seconds <= b.elapsed_seconds for a, b in pairwise(events))
    assert events[-1].elapsed_seconds < A_JUMP_SECONDS


def test_no_figure_of_time_jumps(jumped: RunDirectory) -> None:
    summary = summarize(jumped)
    assert summary.state is RunState.COMPLETED
    assert 0 < summary.seconds < A_JUMP_SECONDS
    view = RunView()
    elapsed, left = [0.0], []
    for event in EventReader(jumped.events_path).read_new():
        view.take(event)
        elapsed.append(view.elapsed_seconds(event.time))
        left.append(view.seconds_left(event.time) or 0.0)
    assert elapsed == sorted(elapsed)
    assert elapsed[-1] < A_JUMP_SECONDS
    assert max(left) < A_JUMP_SECONDS


JUMPS_WHEN_TOLD = """
import os, time
true_time = time.time
time.time = lambda: true_time() + (86400 if os.path.exists("jump") else 0)
"""


def test_the_panel_does_not_jump_while_it_waits_for_the_next_step(tmp_path: Path) -> None:
    run = story.write(tmp_path, "slow")
    stream = EventWriter(run.events_path)
    for event in (*story.preparation(), *story.training(0, 10)):
        stream.append(replace(event, time=time.time()))
    with Terminal(JUMPS_WHEN_TOLD + PANEL, run.path, cwd=tmp_path) as terminal:
        terminal.until_shown("step 10/400")
        (tmp_path / "jump").touch()
        for key, answer in [("s", "Will save"), ("e", "Will evaluate")]:
            terminal.press(key)
            terminal.until_shown(answer)  # so this picture was drawn after the jump
            assert re.search(r"\ds elapsed", "\n".join(terminal.picture))  # not "1d 00h"
        stream.append(replace(story.step_done(12), time=time.time() + DAY_SECONDS))
        terminal.until_shown("step 12/400")
        assert re.search(r"\ds elapsed", "\n".join(terminal.picture))
