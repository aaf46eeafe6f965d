"""Tests of the live panel in a real process on a pseudo-terminal."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.cells import cell_len

from dpo_cli.run.directory import RunDirectory
from dpo_cli.run.event_writer import EventWriter
from tests.support import story
from tests.support.panel import PANEL
from tests.support.terminal import Terminal


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return story.write(tmp_path, "偏好", *story.preparation(), *story.training(0, 110))


@pytest.fixture
def terminal(run: RunDirectory, tmp_path: Path) -> Iterator[Terminal]:
    with Terminal(PANEL, run.path, cwd=tmp_path) as terminal:
        terminal.until_shown("micro-step 110/400")
        yield terminal


def fits(terminal: Terminal, columns: int, rows: int) -> bool:
    lines = terminal.picture
    return len(lines) == rows and {cell_len(line) for line in lines} == {columns}


def test_it_follows_the_stream_and_ends_with_the_run(terminal: Terminal, run: RunDirectory) -> None:
    stream = EventWriter(run.events_path)
    stream.append(story.step_done(112))
    terminal.until_shown("micro-step 112/400")
    run.mark_completed(optimizer_step=56, weights="w")
    assert terminal.wait() == 0
    assert terminal.lines == ["the run is over"]


def test_it_survives_resizes(terminal: Terminal) -> None:
    for columns, rows in [(100, 30), (160, 50), (43, 11), (20, 4), (80, 24)]:
        terminal.resize(columns, rows)
        terminal.until(lambda c=columns, r=rows: fits(terminal, c, r))  # type: ignore[misc]
    assert terminal.process.poll() is None


def test_keys_send_requests_to_the_run(terminal: Terminal, run: RunDirectory) -> None:
    terminal.press("s")
    terminal.until_shown("Will save after this step.")
    assert run.take_request() == "save"
    terminal.press("e")
    terminal.until_shown("Will evaluate after this step.")
    assert run.take_request() == "evaluate"
    terminal.press("?")
    terminal.until_shown("ties count half")
    terminal.press("?")
    terminal.until_shown("ln 2")


def test_stopping_takes_two_presses(terminal: Terminal, run: RunDirectory) -> None:
    terminal.press("q")
    terminal.until_shown("Press q again to save and stop the run.")
    assert run.take_request() is None
    terminal.press("s")
    terminal.until_shown("Will save")
    run.take_request()
    terminal.press("q")
    terminal.until_shown("Press q again")
    terminal.press("q")
    terminal.until_shown("Stopping after this step")
    assert run.take_request() == "stop"
    assert terminal.picture[0].endswith("stopping")


@pytest.mark.parametrize("key", ["d", "\x1a"])
def test_detaching_restores_the_terminal(terminal: Terminal, run: RunDirectory, key: str) -> None:
    assert terminal.modes_now() != terminal.modes
    terminal.press(key)
    assert terminal.wait() == 0
    assert terminal.lines == ["the user left"]
    assert terminal.modes_now() == terminal.modes
    assert terminal.raw.count("\x1b[?1049l") == terminal.raw.count("\x1b[?25h") == 1
    assert run.take_request() is None


def test_ctrl_c_stays_a_signal(terminal: Terminal) -> None:
    terminal.press("\x03")
    terminal.until_shown("Stopping after this step. Press Ctrl-C again to stop now.")


def test_pastes_and_function_keys_are_dropped(terminal: Terminal, run: RunDirectory) -> None:
    for keys in ("\x1b[A", "qqs", "好", "x"):
        terminal.press(keys)
        time.sleep(0.3)  # characters that arrive together count as one key
    terminal.press("?")
    terminal.until_shown("reopens the panel")
    assert run.take_request() is None


def test_no_color_with_no_color_set(run: RunDirectory, tmp_path: Path) -> None:
    with Terminal(PANEL, run.path, cwd=tmp_path, NO_COLOR="1") as terminal:
        terminal.until_shown("micro-step 110/400")
        assert "\x1b[3" not in terminal.raw
