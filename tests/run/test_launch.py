"""Tests of the launcher with small stand-in workers that end, fail, crash or handle signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dpo_cli.errors import DpoError, ExitCode
from dpo_cli.run.directory import RunDirectory
from dpo_cli.run.event_writer import EventWriter
from dpo_cli.run.events import (
    Alert,
    Completed,
    Event,
    EventReader,
    Planned,
    Stopped,
    WorkerEnded,
)
from dpo_cli.run.launch import Launcher, worker_argv
from dpo_cli.run.lookup import find_runs
from tests.support.cli import HANG_SECONDS
from tests.support.story import PLAN, plan_source

PREAMBLE = """
import os, signal, sys, time
from pathlib import Path
from dpo_cli.run.event_writer import *
from dpo_cli.run.events import *
run = Path(sys.argv[1])
stream = EventWriter(run / "events.jsonl")
"""
PLANNED = plan_source() + "stream.append(Planned(plan=PLAN))\n"
COMPLETED = "stream.append(Completed(step=1, optimizer_step=1, weights='w'))\n"
# Reports that it is ready, then waits for the signal; without one it ends in time to fail a test.
WAIT = """
stream.append(Alert(code="ready", message=""))
for _ in range(12000):
    time.sleep(0.05)
"""


def argv(run: RunDirectory, script: str) -> list[str]:
    return [sys.executable, "-c", PREAMBLE + textwrap.dedent(script), str(run.path)]


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory.create(tmp_path / "runs", "dense", "")


def launch(
    run: RunDirectory, script: str, observe: Callable[[Event], None] = lambda event: None
) -> ExitCode:
    """Run the worker as `dpo train` would: a run that is refused before the plan is removed."""
    with run.locked() as lock:
        command = argv(run, script)
        return Launcher(run, lock, command, observe=observe, undo=run.remove).run()


def when_ready(*signals: signal.Signals) -> Callable[[Event], None]:
    """Return an observer that sends this process signals when the worker is ready."""

    def observe(event: Event) -> None:
        if isinstance(event, Alert) and event.code == "ready":
            for number in signals:
                os.kill(os.getpid(), number)

    return observe


def ending(run: RunDirectory) -> WorkerEnded:
    *_, last = EventReader(run.events_path).read_new()
    assert isinstance(last, WorkerEnded)
    return last


def test_a_run_to_its_end(run: RunDirectory) -> None:
    seen: list[Event] = []
    script = (
        PLANNED + "time.sleep(0.3)\n" + COMPLETED + "print('hello'); print('oh', file=sys.stderr)"
    )
    assert launch(run, script, seen.append) is ExitCode.DONE
    assert [type(event) for event in seen] == [Planned, Completed, WorkerEnded]
    assert ending(run) == seen[-1]
    assert ending(run).exit_code == 0
    assert sorted(run.worker_log_path.read_text().split()) == ["hello", "oh"]
    assert run.holder() is None


def test_only_events_after_the_start_are_shown(run: RunDirectory) -> None:
    writer = EventWriter(run.events_path)
    writer.append(Planned(plan=PLAN))
    writer.append(Stopped(reason="interrupted", step=1, optimizer_step=1))
    writer.close()
    seen: list[Event] = []
    launch(run, COMPLETED, seen.append)
    assert [type(event) for event in seen] == [Completed, WorkerEnded]


def test_a_request_left_by_an_earlier_worker_is_dropped(run: RunDirectory) -> None:
    run.put_request("stop")
    launch(run, PLANNED)
    assert run.take_request() is None


def test_the_worker_has_its_own_session_no_input_and_the_lock(run: RunDirectory) -> None:
    script = """
        assert os.getsid(0) == os.getpid()
        assert sys.stdin.read() == ""
        held = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")
                if os.path.exists(f"/proc/self/fd/{fd}")]
        assert str((run / "lock").resolve()) in held, held
    """
    assert launch(run, script) is ExitCode.DONE


# --- observers --------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [RuntimeError("panel"), BrokenPipeError(), SystemExit(1)])
def test_an_observer_that_raises_is_dropped_and_training_continues(
    run: RunDirectory, error: BaseException
) -> None:
    calls = 0

    def observe(event: Event) -> None:
        nonlocal calls
        calls += 1
        raise error

    assert launch(run, PLANNED + COMPLETED, observe) is ExitCode.DONE
    assert calls == 1
    assert type(error).__name__ in run.launcher_log_path.read_text()


# --- signals ----------------------------------------------------------------------------------

SAVES = """
def save(number, frame):
    stream.append(Stopped(reason="interrupted", step=1, optimizer_step=1))
    sys.exit(128 + number)
signal.signal(signal.SIGINT, save)
signal.signal(signal.SIGTERM, save)
"""
IGNORES = "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, ExitCode.INTERRUPTED), (signal.SIGTERM, ExitCode.TERMINATED)],
)
def test_one_signal_lets_the_worker_save(
    run: RunDirectory, number: signal.Signals, code: ExitCode
) -> None:
    assert launch(run, PLANNED + SAVES + WAIT, when_ready(number)) is code
    assert ending(run).exit_code == code


def test_the_first_ctrl_c_is_answered(run: RunDirectory) -> None:
    alerts: list[str] = []
    interrupt = when_ready(signal.SIGINT)

    def observe(event: Event) -> None:
        if isinstance(event, Alert):
            alerts.append(event.message)
            if event.code == "stopping":
                (run.path / "answered").touch()
        interrupt(event)

    waiting = "    while not (run / 'answered').exists():\n        time.sleep(0.02)"
    slowly = SAVES.replace("def save(number, frame):", f"def save(number, frame):\n{waiting}")
    launch(run, PLANNED + slowly + WAIT, observe)
    assert "stopping after this step; Ctrl-C again to stop now" in alerts


def test_the_second_ctrl_c_kills_the_worker_and_keeps_the_run(run: RunDirectory) -> None:
    with pytest.raises(DpoError, match="stopped at once") as caught:
        launch(run, PLANNED + IGNORES + WAIT, when_ready(signal.SIGINT, signal.SIGINT))
    assert caught.value.exit_code is ExitCode.INTERRUPTED
    assert f"dpo resume {run.designation}" in caught.value.remedy
    assert ending(run).signal == signal.SIGKILL
    assert run.profile_path.exists()
    assert run.holder() is None


def test_the_second_ctrl_c_ends_the_workers_children_too(run: RunDirectory) -> None:
    children = "import subprocess; child = subprocess.Popen(['sleep', '60'])\n"
    children += "(run / 'child').write_text(str(child.pid))\n"
    with pytest.raises(DpoError):
        launch(run, PLANNED + IGNORES + children + WAIT, when_ready(signal.SIGINT, signal.SIGINT))
    status = Path("/proc", (run.path / "child").read_text(), "stat")
    deadline = time.monotonic() + HANG_SECONDS
    while status.exists() and status.read_text().split()[2] != "Z":
        assert time.monotonic() < deadline, "the child lives on"
        time.sleep(0.02)


def test_a_closing_terminal_does_not_end_training(run: RunDirectory) -> None:
    script = (
        PLANNED + "stream.append(Alert(code='ready', message=''))\ntime.sleep(0.3)\n" + COMPLETED
    )
    assert launch(run, script, when_ready(signal.SIGHUP)) is ExitCode.DONE


def test_the_signal_handlers_of_the_caller_are_restored(run: RunDirectory) -> None:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    launch(run, PLANNED)
    assert [signal.getsignal(number) for number in numbers] == before


@pytest.mark.parametrize(
    "script",
    ["signal.signal(signal.SIGINT, signal.SIG_DFL)\n" + WAIT, SAVES + WAIT],
    ids=["killed by it", "exits 130"],
)
def test_ctrl_c_before_the_plan_removes_the_run(run: RunDirectory, script: str) -> None:
    with pytest.raises(DpoError, match="before the run was planned") as caught:
        launch(run, script, when_ready(signal.SIGINT))
    assert caught.value.exit_code is ExitCode.INTERRUPTED
    assert find_runs(run.path.parent) == []
    assert list(run.path.parent.iterdir()) == []


# --- failures ---------------------------------------------------------------------------------

FAILED = """
stream.append(Failed(message="row 3 is broken", remedy="mend it", details=("a", "b"), exit_code=2))
sys.exit(2)
"""


def test_a_failure_before_the_plan_is_reported_and_removes_the_run(run: RunDirectory) -> None:
    with pytest.raises(DpoError, match="row 3 is broken") as caught:
        launch(run, FAILED)
    assert caught.value.remedy == "mend it"
    assert caught.value.details == ("a", "b")
    assert caught.value.exit_code is ExitCode.USAGE
    assert list(run.path.parent.iterdir()) == []


def test_a_failure_after_the_plan_keeps_the_run(run: RunDirectory) -> None:
    with pytest.raises(DpoError, match="row 3 is broken"):
        launch(run, PLANNED + FAILED)
    assert run.profile_path.exists()


def test_a_failure_after_a_resume_keeps_the_changed_profile(run: RunDirectory) -> None:
    resumed = "stream.append(Resumed(optimizer_step=1, step=1, checkpoint='g'))\n"
    with pytest.raises(DpoError, match="row 3 is broken"):
        launch(run, resumed + FAILED)
    assert run.profile_path.exists()


def test_an_unexpected_end_quotes_the_log_of_this_worker_and_keeps_the_run(
    run: RunDirectory,
) -> None:
    run.worker_log_path.write_text("ValueError: of an earlier worker\n")
    with pytest.raises(DpoError, match="exit code 1: RuntimeError: boom") as caught:
        launch(run, "raise RuntimeError('boom')")
    assert any(str(run.worker_log_path) in detail for detail in caught.value.details)
    assert run.profile_path.exists()
    with pytest.raises(DpoError, match=r"(?m)exit code 7$"):
        launch(run, "os._exit(7)")


def test_death_by_a_signal_names_the_signal_the_checkpoint_and_the_remedy(
    run: RunDirectory,
) -> None:
    run.commit_checkpoint(4, lambda directory: None)
    (run.commit_checkpoint(8, lambda directory: None).path / "manifest.json").unlink()
    with pytest.raises(DpoError, match=r"SIGKILL \(killed, often by the kernel") as caught:
        launch(run, PLANNED + "os.kill(os.getpid(), signal.SIGKILL)")
    assert caught.value.exit_code is ExitCode.FAILED
    assert "train.batch_size" in caught.value.message
    assert caught.value.remedy == f"Continue with: dpo resume {run.designation}"
    assert any("step-00000008 is damaged" in detail for detail in caught.value.details)
    assert any("step-00000004, after optimizer step 4" in d for d in caught.value.details)
    assert (ending(run).exit_code, ending(run).signal) == (137, signal.SIGKILL)


def test_a_sigkill_from_elsewhere_after_one_ctrl_c_is_a_crash(run: RunDirectory) -> None:
    script = (
        PLANNED + IGNORES.replace("signal.SIG_IGN", "lambda *_: os.kill(os.getpid(), 9)") + WAIT
    )
    with pytest.raises(DpoError, match="SIGKILL"):
        launch(run, script, when_ready(signal.SIGINT))


def test_a_torn_tail_is_cut_before_the_end_is_appended(run: RunDirectory) -> None:
    torn = PLANNED + 'os.write(stream._descriptor, b\'{"event": "Al\')\nos._exit(0)'
    assert launch(run, torn) is ExitCode.DONE
    assert [type(event) for event in EventReader(run.events_path).read_new()] == [
        Planned,
        WorkerEnded,
    ]


# --- detached ---------------------------------------------------------------------------------

DETACHED = """
import os, sys
from pathlib import Path
from dpo_cli.run.launch import Launcher, detach
from dpo_cli.run.directory import RunDirectory
run = RunDirectory(Path(sys.argv[1]))
with run.locked() as lock:
    if pid := detach(run, lock):
        print(pid)
        sys.exit()
    print("on its own", flush=True)
    show = lambda event: print(type(event).__name__, flush=True)
    Launcher(run, lock, sys.argv[2:], observe=show).run()
"""


def test_a_detached_launcher_outlives_the_caller_and_holds_the_lock(run: RunDirectory) -> None:
    waiting = "while not (run / 'seen').exists():\n    time.sleep(0.02)\n"
    worker = argv(run, PLANNED + waiting + COMPLETED)
    caller = subprocess.run(
        [sys.executable, "-c", DETACHED, str(run.path), *worker],
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
        check=True,
    )
    pid = int(caller.stdout)
    assert caller.stderr == ""
    assert os.getsid(pid) == pid
    deadline = time.monotonic() + HANG_SECONDS
    while f"process {pid} on" not in (run.holder() or "") and time.monotonic() < deadline:
        time.sleep(0.02)
    assert f"process {pid} on" in (run.holder() or "")
    (run.path / "seen").touch()
    while run.holder() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert ending(run).exit_code == 0
    assert run.launcher_log_path.read_text().split("\n") == [
        "on its own",
        "Planned",
        "Completed",
        "WorkerEnded",
        "",
    ]


def test_the_workers_command_line(run: RunDirectory) -> None:
    assert worker_argv(run, ["train.epochs: 2 -> 4", "x"]) == [
        *(sys.executable, "-P", "-m", "dpo_cli.training.worker", str(run.path)),
        *("--change", "train.epochs: 2 -> 4", "--change", "x"),
    ]
