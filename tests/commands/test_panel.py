"""Tests of `dpo train` and `resume` on a terminal: the panel in front, training behind."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path

import pytest

from dpo_cli.run.directory import RunDirectory
from dpo_cli.run.lookup import find_runs
from tests.support.fake_worker import WORKER
from tests.support.terminal import Terminal

pytestmark = pytest.mark.usefixtures("directory")

DPO = """
import sys
from dpo_cli import app
from dpo_cli.run import launch
worker = sys.argv.pop(1)
launch.worker_argv = lambda run, *_, **__: [sys.executable, "-c", worker, str(run.path)]
sys.exit(app.main(sys.argv[1:]))
"""
STARTS = """
stream.append(WorkerStarted(pid=1, device="cpu", device_name="", dtype="float32", versions={}))
"""
TRAINS = (
    STARTS
    + """
plan()
stream.append(StepDone(step=1, optimizer_step=1, epoch=1, learning_rate=1e-6, losses=(0.69,),
    metrics={"loss": 0.69, "rewards/margins": 0.0, "rewards/accuracies": 0.5, "grad_norm": 1.0},
    pairs=1, tokens=9, padding_tokens=0, seconds=0.1, process_bytes=1,
    device_bytes=0))
"""
)
SAVES_AT_A_SIGNAL = """
import signal
def save(number, frame):
    stream.append(Stopped(reason="interrupted", step=3, optimizer_step=3))
    sys.exit(128 + number)
signal.signal(signal.SIGINT, save)
signal.signal(signal.SIGTERM, save)
"""
NEVER_ENDS = "\nfor _ in range(600): time.sleep(0.05)\n"
UNTIL_STOPPED = "\nwait_for_stop()\n"
COMPLETES_WHEN_ASKED = """
while run.take_request() != "save":
    time.sleep(0.05)
complete()
"""


def dpo(worker: str, *arguments: str, **changes: str) -> Terminal:
    """Return `dpo` on a terminal, with this worker."""
    return Terminal(DPO, WORKER + worker, *arguments, cwd=Path.cwd(), **changes)


def train(worker: str, *options: str, **changes: str) -> Terminal:
    return dpo(worker, "train", "mine.toml", *options, **changes)


def the_run() -> RunDirectory:
    [run] = find_runs(Path("runs"))
    return run


def until_nobody_trains(run: RunDirectory) -> None:
    deadline = time.monotonic() + 30
    while run.holder() is not None:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_to_the_end() -> None:
    with train(TRAINS + COMPLETES_WHEN_ASKED) as terminal:
        terminal.until_shown("step 1/8")
        run = the_run()
        run.put_request("save")
        assert terminal.wait() == 0
        first, *rest = terminal.lines
        assert first == f"run {run.name}: Ctrl-C saves and stops"
        # The paths may be broken at the edge of the terminal.
        ending = "".join(rest).replace(" ", "")
        assert re.search(rf"done:8stepsin\d+s,weightsinruns/{run.name}/rlhf_512.pth", ending)
        assert f"export:dpoexport{run.name}(" in ending
        assert ending.endswith("loadedbackandcompared)")
        assert terminal.modes_now() == terminal.modes
    assert run.is_completed
    assert run.holder() is None
    assert "done: 8 steps" in run.launcher_log_path.read_text()


def test_ctrl_c_saves_and_stops() -> None:
    with train(TRAINS + SAVES_AT_A_SIGNAL + NEVER_ENDS) as terminal:
        terminal.until_shown("step 1/8")
        terminal.press("\x03")
        assert terminal.wait() == 130
        assert terminal.lines[-2:] == [
            "interrupted after step 3; everything is saved",
            f"resume: dpo resume {the_run().name}",
        ]


def test_ctrl_c_twice_stops_at_once() -> None:
    ignores = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
    with train(ignores + TRAINS + NEVER_ENDS) as terminal:
        terminal.until_shown("step 1/8")
        terminal.press("\x03")
        terminal.until_shown("Ctrl-C again to stop now")
        terminal.press("\x03")
        assert terminal.wait() == 130
        assert "error: stopped at once, without saving" in terminal.lines
        assert f"help: Continue with: dpo resume {the_run().name}" in terminal.lines


def test_termination_saves() -> None:
    with train(TRAINS + SAVES_AT_A_SIGNAL + NEVER_ENDS) as terminal:
        terminal.until_shown("step 1/8")
        terminal.send(signal.SIGTERM)
        assert terminal.wait() == 143


def test_a_refusal_is_shown_and_leaves_no_run() -> None:
    with train("time.sleep(0.5)\nrefuse()") as terminal:
        assert terminal.wait() == 2
        assert terminal.lines[-1] == "error: not the same data"
    assert list(Path("runs").iterdir()) == []


def test_the_death_of_a_worker_is_shown_and_the_run_resumes() -> None:
    with train(TRAINS + "import os; time.sleep(0.5); os.kill(os.getpid(), 9)") as terminal:
        assert terminal.wait() == 1
        assert any("the worker died of SIGKILL" in line for line in terminal.lines)
    run = the_run()
    assert run.holder() is None
    resumed = STARTS + "stream.append(Resumed(optimizer_step=0, step=0, checkpoint=''))\n"
    with dpo(resumed + COMPLETES_WHEN_ASKED, "resume") as terminal:
        terminal.until_shown("training")
        run.put_request("save")
        assert terminal.wait() == 0
    assert run.is_completed


def test_leaving_the_panel_leaves_the_run_training() -> None:
    with train(TRAINS + UNTIL_STOPPED) as terminal:
        terminal.until_shown("step 1/8")
        terminal.press("d")
        assert terminal.wait() == 0
        run = the_run()
        assert f"watch:   dpo watch {run.name}" in terminal.lines
    assert run.holder() is not None
    with dpo("", "watch") as terminal:
        terminal.until_shown("step 1/8")
        run.put_request("stop")
        assert terminal.wait() == 0
        assert f"resume: dpo resume {run.name}" in terminal.lines
    until_nobody_trains(run)


def test_a_terminal_that_closes_ends_nothing() -> None:
    with train(TRAINS + COMPLETES_WHEN_ASKED) as terminal:
        terminal.until_shown("step 1/8")
        terminal.hang_up()
        run = the_run()
        run.put_request("save")
        until_nobody_trains(run)
        assert run.is_completed


def test_a_panel_that_is_killed_ends_nothing() -> None:
    with train(TRAINS + COMPLETES_WHEN_ASKED) as terminal:
        terminal.until_shown("step 1/8")
        terminal.send(signal.SIGKILL)
        the_run().put_request("save")
        until_nobody_trains(the_run())
        assert the_run().is_completed


def test_the_death_of_the_launcher_is_shown() -> None:
    with train(TRAINS + "time.sleep(5)") as terminal:
        terminal.until_shown("step 1/8")
        holder = the_run().holder() or ""
        os.kill(int(holder.split()[1]), signal.SIGKILL)
        assert terminal.wait() == 1
        assert "error: the launcher in the background was killed by SIGKILL" in terminal.lines
    until_nobody_trains(the_run())


def test_a_panel_that_crashes_is_dropped_and_the_end_is_printed() -> None:
    crash = "from dpo_cli.ui.terminal import panel\npanel.Panel._draw = lambda self: 1 / 0\n"
    worker = WORKER + TRAINS + "time.sleep(1)\ncomplete()"
    arguments = (worker, "train", "mine.toml")
    with Terminal(crash + DPO, *arguments, cwd=Path.cwd()) as terminal:
        assert terminal.wait() == 0
        assert terminal.lines[-1].startswith(f"export: dpo export {the_run().name}  (")
        assert terminal.modes_now() == terminal.modes
    log = the_run().launcher_log_path.read_text()
    assert "The panel failed and was dropped; training continues." in log
    assert "ZeroDivisionError" in log


@pytest.mark.parametrize(
    ("options", "changes"),
    [
        (["--plain"], {}),
        (["--quiet"], {}),
        ([], {"TERM": "dumb"}),
        ([], {"PYTHONIOENCODING": "ascii"}),
    ],
)
def test_plain_lines_where_they_are_wanted(options: list[str], changes: dict[str, str]) -> None:
    with train(TRAINS + "complete()", *options, **changes) as terminal:
        assert terminal.wait() == 0
        assert "\x1b[?1049h" not in terminal.raw
        assert terminal.lines[-1].startswith(f"export: dpo export {the_run().name}  (")
    assert not the_run().launcher_log_path.exists()
