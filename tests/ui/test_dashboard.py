"""Tests of the panel as text, at several sizes."""

from __future__ import annotations

import dataclasses
import io
import re
import socket
import time
from collections.abc import Iterable
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console
from rich.style import Style
from rich.terminal_theme import DEFAULT_TERMINAL_THEME, DIMMED_MONOKAI, SVG_EXPORT_THEME

from dpo_cli.run.events import (
    EVALUATION,
    Event,
    Failed,
    Planned,
    Progress,
    RankEnded,
    Resumed,
    Stopped,
    WorkerEnded,
    WorkerStarted,
)
from dpo_cli.run.view import RunView
from dpo_cli.ui.terminal.dashboard import Dashboard, Disk
from dpo_cli.ui.terminal.panel import KEYS
from tests.support import story
from tests.support.snapshots import assert_snapshot

NAME = "dense-20260101-120000-ab12"
SIZES = [(80, 24), (100, 30), (160, 50)]
DISK = Disk(free_bytes=50_100_000_000, checkpoints=2)
THEMES = {"light": DEFAULT_TERMINAL_THEME, "dark": SVG_EXPORT_THEME, "monokai": DIMMED_MONOKAI}
SCENES: dict[str, list[Event]] = {
    "starting": [],
    "early": list(story.preparation()),
    "middle": [*story.preparation(), *story.training(0, 170)],
    "alert": [
        *story.preparation(),
        *story.training(0, 100),
        story.at(160, story.SLOW),
        *story.training(100, 110),
    ],
    "failed": [*story.preparation(), *story.training(0, 172), story.at(270, story.FAILED)],
    "finished": list(story.whole()),
    "two-ranks": list(
        story.on_ranks([*story.preparation(), *story.training(0, 170)], [2.41, 2.52])
    ),
    "ranks": list(
        story.on_ranks(
            [*story.preparation(), *story.training(0, 170)],
            [1.21, 1.17, 1.24, 2.43, 1.19, 1.22, 1.2, 1.23],
        )
    ),
}


def seen(events: Iterable[Event]) -> RunView:
    view = RunView()
    for event in events:
        view.take(event)
    return view


def dashboard(events: Iterable[Event], **settings: object) -> Dashboard:
    view = seen(events)
    arguments = {"now": view.time + 1.0, "disk": DISK, "keys": KEYS, **settings}
    return Dashboard(view, NAME, Path("runs", NAME), **arguments)  # type: ignore[arg-type]


def drawn(picture: Dashboard, width: int, height: int, **settings: object) -> str:
    console = Console(
        file=io.StringIO(),
        width=width,
        height=height,
        **settings,  # type: ignore[arg-type]
    )
    console.print(picture, end="")
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize(("width", "height"), SIZES)
@pytest.mark.parametrize("scene", SCENES)
def test_snapshots(scene: str, width: int, height: int) -> None:
    keys = {} if scene in ("failed", "finished") else KEYS
    text = drawn(dashboard(SCENES[scene], keys=keys), width, height)
    assert_snapshot(f"{scene}-{width}x{height}", text)


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_skipped_updates_show_in_the_line_of_the_gradient(width: int, height: int) -> None:
    def gradient(*extra: Event) -> str:
        text = drawn(dashboard([*SCENES["middle"], *extra]), width, height)
        [line] = re.findall(r"gradient {2}.*", text)
        return str(line)

    skipped = dataclasses.replace(story.step_done(172), is_skipped=True)  # type: ignore[call-arg]
    assert "skipped" not in gradient()
    assert ", 1 skipped" in gradient(skipped)
    resumed = Resumed(step=100, optimizer_step=50, checkpoint="step-00000050")
    again = dataclasses.replace(story.step_done(102), is_skipped=True)  # type: ignore[call-arg]
    assert ", 1 skipped" in gradient(skipped, resumed, again)


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_changed_weights_show_the_step_of_their_measurement(width: int, height: int) -> None:
    text = drawn(dashboard(SCENES["middle"]), width, height)
    assert "weights   2.0 % moved by step 80" in text  # train.log_interval before step 85
    gone = Resumed(step=100, optimizer_step=50, checkpoint="step-00000050")
    assert "moved by" not in drawn(dashboard([*SCENES["middle"], gone]), width, height)


def test_an_alert_from_before_a_resume_has_its_time() -> None:
    stopped = Stopped(reason="interrupted", step=110, optimizer_step=55)
    resumed = Resumed(step=110, optimizer_step=55, checkpoint="step-00000055")
    events = [*SCENES["alert"], stopped, story.at(400, story.CHINESE), next(story.preparation())]
    text = drawn(dashboard([*events, resumed]), 160, 50)
    at = time.strftime("%Y-%m-%d %H:%M", time.localtime(story.STARTED + 160))
    assert f"warning of {at}, before the resume: " in text
    assert text.count("warning") == 2  # and the one of this start
    assert text.index("warning: ") < text.index("warning of ")
    assert "before the resume" not in drawn(dashboard(SCENES["alert"]), 160, 50)


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_ranking_and_accuracy_are_explained_together(width: int, height: int) -> None:
    text = drawn(dashboard(SCENES["middle"]), width, height)
    assert ("ranking: chosen is more probable" in text) == (height > 24)
    assert ("accuracy: chosen gained more" in text) == (height > 24)


def test_an_evaluation_between_steps_shows_its_progress() -> None:
    evaluating = Progress(phase=EVALUATION, done=8, total=20, unit="pairs")
    lines = drawn(dashboard([*SCENES["middle"], evaluating]), 80, 24).splitlines()
    assert lines[1].startswith("micro-step 170/400 ")
    assert lines[2].startswith("evaluation 8/20 pairs ")
    assert "40 %" in lines[2]


def test_the_end_names_what_is_left() -> None:
    steps = [*story.preparation(), *story.training(0, 398), story.step_done(400)]
    assert drawn(dashboard(steps), 80, 24).splitlines()[1].endswith("100 %   last evaluation")
    evaluated = dashboard([*steps, story.evaluated(400)])
    assert drawn(evaluated, 80, 24).splitlines()[1].endswith("100 %            saving")


def test_snapshot_of_the_help() -> None:
    assert_snapshot("help-80x24", drawn(dashboard(SCENES["middle"], shows_help=True), 80, 24))


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_chinese_names_and_alerts_keep_the_frames_straight(width: int, height: int) -> None:
    view = seen([*SCENES["middle"], story.at(262, story.CHINESE)])
    name = "偏好优化-20260101-120000-ab12"
    picture = Dashboard(view, name, Path("runs", name), now=view.time, disk=DISK, keys=KEYS)
    text = drawn(picture, width, height)
    assert {cell_len(line) for line in text.splitlines()} == {width}
    assert_snapshot(f"chinese-{width}x{height}", text)


@pytest.mark.parametrize("width", [40, 57, 79, 81, 129, 131, 250])
@pytest.mark.parametrize("height", [8, 12, 23, 37, 90])
@pytest.mark.parametrize("scene", SCENES)
def test_every_size_is_filled_and_never_exceeded(scene: str, width: int, height: int) -> None:
    lines = drawn(dashboard(SCENES[scene]), width, height).splitlines()
    assert len(lines) == height
    assert {cell_len(line) for line in lines} == {width}


# --- colors ----------------------------------------------------------------------------------


@pytest.mark.parametrize("scene", SCENES)
def test_only_the_terminals_sixteen_colors_and_no_background(scene: str) -> None:
    console = Console(file=io.StringIO(), width=160, height=50, force_terminal=True)
    for line in dashboard(SCENES[scene]).lines(console, 160, 50):
        for segment in line.render(console):
            style = segment.style
            if style is None or isinstance(style, str):
                continue
            assert style.bgcolor is None
            assert style.color is None or (style.color.number or 0) < 8


def luminance(red: int, green: int, blue: int) -> float:
    """Relative luminance, as WCAG 2 defines it."""
    linear = [
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
        for c in (red / 255, green / 255, blue / 255)
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("scene", SCENES)
@pytest.mark.parametrize(("width", "height"), SIZES)
def test_contrast_on_dark_and_light_themes(theme: str, scene: str, width: int, height: int) -> None:
    """Every color, also dimmed, has enough contrast with the background of the theme."""
    console = Console(file=io.StringIO(), width=width, height=height, force_terminal=True)
    background = luminance(*THEMES[theme].background_color)
    for line in dashboard(SCENES[scene]).lines(console, width, height):
        for segment in line.render(console):
            if not segment.text.strip() or not isinstance(segment.style, Style):
                continue
            css = segment.style.get_html_style(THEMES[theme])
            for shown in re.findall(r"(?<!-)color: #(\w{6})", css):
                light = luminance(*bytes.fromhex(shown))
                brighter, darker = max(light, background), min(light, background)
                assert (brighter + 0.05) / (darker + 0.05) > 2.0, (segment.text, css)


def test_colors_change_no_character() -> None:
    picture = dashboard(SCENES["middle"])
    plain = drawn(picture, 80, 24)
    for settings in (
        {"color_system": "truecolor"},
        {"color_system": "standard"},
        {"no_color": True},
    ):
        console = Console(
            file=io.StringIO(), width=80, height=24, force_terminal=True, record=True, **settings
        )
        console.print(picture, end="")
        assert console.export_text() == plain


def test_without_color_shapes_distinguish_the_curves() -> None:
    text = drawn(dashboard(SCENES["middle"]), 80, 24, no_color=True, force_terminal=True)
    assert "\x1b[3" not in text
    assert "⣿" in text  # the spots of the held-out curve


# --- texts ---------------------------------------------------------------------------------


def test_a_run_without_process_and_ending_was_killed() -> None:
    text = drawn(dashboard(SCENES["middle"], is_alive=False, keys={}), 80, 24)
    assert text.splitlines()[0].endswith("killed")
    assert text.splitlines()[-1].startswith(f"resume: dpo resume {NAME}")
    assert "4m 20s elapsed" in text


@pytest.mark.parametrize(
    ("ending", "state", "command"),
    [
        (Stopped(reason="interrupted", step=170, optimizer_step=85), "stopped", "resume"),
        (WorkerEnded(exit_code=137, signal=9), "killed", "resume"),
        (WorkerEnded(exit_code=1), "failed", "resume"),
    ],
)
def test_endings(ending: Event, state: str, command: str) -> None:
    text = drawn(dashboard([*SCENES["middle"], story.at(262, ending)], keys={}), 80, 24)
    assert text.splitlines()[0].endswith(state)
    assert text.splitlines()[-1].startswith(f"{command}: dpo {command} {NAME}")


def test_a_killed_worker_is_an_error_with_the_signal() -> None:
    events = [*SCENES["middle"], WorkerEnded(exit_code=137, signal=9)]
    assert "error: the worker died of SIGKILL" in drawn(dashboard(events), 80, 24)


def test_ranks_that_were_lost_are_the_error() -> None:
    lost = [
        RankEnded(rank=1, host=socket.gethostname(), pid=7, exit_code=137, signal=9),
        RankEnded(rank=0, host="node1", pid=8, exit_code=1, message="rank 1 did not come"),
    ]
    events = [*SCENES["two-ranks"], *lost, WorkerEnded(exit_code=1)]
    text = " ".join(drawn(dashboard(events), 130, 40).split())
    assert "error: rank 1 died of SIGKILL (killed, often" in text
    assert "rank 0 on node1 ended with exit code 1: rank 1 did not come" in text
    again = WorkerStarted(pid=8, device="cpu", device_name="", dtype="float32", versions={})
    assert "rank 1" not in drawn(dashboard([*events, again]), 130, 40)


def test_with_many_ranks_the_slowest_are_shown() -> None:
    seconds = [1.0 + 0.01 * rank for rank in range(16)]
    events = story.on_ranks([*story.preparation(), *story.training(0, 40)], seconds)
    text = drawn(dashboard(events), 80, 24)
    assert "slowest of 16 ranks" in text
    assert "15 ━" in text
    assert " 7 ━" not in text


def test_a_resumed_run_shows_earlier_curves_while_it_prepares() -> None:
    again = WorkerStarted(pid=8, device="cpu", device_name="", dtype="float32", versions={})
    text = drawn(dashboard([*SCENES["failed"], story.at(0, again)]), 80, 24)
    assert text.splitlines()[0].endswith("preparing")
    assert "ln 2 ⣿" in text
    resumed = Resumed(step=100, optimizer_step=50, checkpoint="step-00000050")
    text = drawn(dashboard([*SCENES["failed"], story.at(0, again), story.at(1, resumed)]), 80, 24)
    assert "micro-step 100/400" in text
    assert text.splitlines()[0].endswith("training")


@pytest.mark.parametrize(("start", "label"), [(1.0, "1"), (2.5, "2.5"), (None, None)])
def test_the_level_of_the_loss_is_where_it_starts(start: float | None, label: str | None) -> None:
    """Without a known start there is no level, which would compress the curve."""
    plan = dataclasses.replace(story.PLAN, loss_at_start=start)
    events = [
        dataclasses.replace(event, plan=plan) if isinstance(event, Planned) else event
        for event in SCENES["middle"]
    ]
    text = drawn(dashboard(events), 100, 30)
    assert "ln 2" not in text
    if label is not None:
        assert re.search(rf"│ +{re.escape(label)} [⠀-⣿]", text)


def test_untrusted_text_cannot_break_the_lines() -> None:
    evil = Failed(message="one\ntwo\r\x1b[2Jthree\tfour", details=("five",))
    text = drawn(dashboard([story.at(0, evil)]), 80, 24)
    assert "error: one two ␛[2Jthree four: five" in text
    assert len(text.splitlines()) == 24


def test_the_newest_alerts_come_first() -> None:
    alerts = [story.at(200 + k, _alert(k)) for k in range(9)]
    text = drawn(dashboard([*SCENES["middle"], *alerts]), 80, 24)
    assert "number 8" in text
    assert "number 0" not in text
    assert "loss" in text


def _alert(number: int) -> Event:
    from dpo_cli.run.events import Alert

    return Alert(code=str(number), message=f"number {number}", remedy="fix it")
