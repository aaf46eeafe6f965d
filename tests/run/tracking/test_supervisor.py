"""Tests of the feeder process of a run, whose failures do not affect the run."""

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
from dpo_cli.run.events import Alert, Event, EventReader
from dpo_cli.run.launch import Launcher
from dpo_cli.run.lookup import find_runs
from dpo_cli.run.tracking import supervisor
from tests.support.cli import HANG_SECONDS
from tests.support.tracking_streams import PLANNED, new_run

WORKER = f"""
from dpo_cli.run.plan import *
import sys, time
from pathlib import Path
from dpo_cli.run.event_writer import *
from dpo_cli.run.events import *
stream = EventWriter(Path(sys.argv[1]) / "events.jsonl")
stream.append({PLANNED!r})
while sys.argv[2] == "waits" and not Path(sys.argv[1], "missed").exists():
    time.sleep(0.02)
stream.append(Completed(step=1, optimizer_step=1, weights="w"))
"""
REFUSES = """
import sys
from pathlib import Path
from dpo_cli.run.event_writer import *
from dpo_cli.run.events import *
EventWriter(Path(sys.argv[1]) / "events.jsonl").append(Failed(message="row 3 is broken"))
sys.exit(1)
"""
HANGS = """
import sys, time
from pathlib import Path
sys.stdin.read()
for _ in range(12000):  # until the test lets it go
    if Path(sys.argv[1], "go").exists():
        break
    time.sleep(0.05)
"""
FOLLOWS = "import sys; sys.stdin.read(); print('it was told')"


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return new_run(tmp_path, use_tensorboard=True)


@pytest.fixture
def beside(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Replace the feeder by a script."""

    def put(script: str) -> None:
        argv = [sys.executable, "-c", textwrap.dedent(script)]
        monkeypatch.setattr(supervisor, "feeder_argv", lambda run: [*argv, str(run.path)])

    return put


Beside = Callable[[str], None]


def launch(
    run: RunDirectory,
    *,
    worker: str = WORKER,
    waits: bool = False,
    observe: Callable[[Event], None] = lambda event: None,
) -> ExitCode:
    argv = [sys.executable, "-c", worker, str(run.path), "waits" if waits else ""]
    with run.locked() as lock:
        trackers = ["tensorboard", "wandb"]
        launcher = Launcher(run, lock, argv, observe=observe, trackers=trackers, undo=run.remove)
        return launcher.run()


def alerts(run: RunDirectory) -> dict[str, Alert]:
    events = EventReader(run.events_path).read_new()
    return {event.code: event for event in events if isinstance(event, Alert)}


def test_the_launcher_closes_its_input_and_waits(run: RunDirectory, beside: Beside) -> None:
    beside(FOLLOWS)
    assert launch(run) is ExitCode.DONE
    assert (run.path / "track.log").read_text() == "it was told\n"
    assert alerts(run) == {}
    assert run.holder() is None


def test_it_gets_no_ctrl_c_and_does_not_hold_the_lock(run: RunDirectory, beside: Beside) -> None:
    beside("""
        import os, sys
        print(os.getsid(0) == os.getpid())
        names = [os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")]
        print(any(name.endswith("/lock") for name in names))
        sys.stdin.read()
    """)
    launch(run)
    assert (run.path / "track.log").read_text().split() == ["True", "False"]


@pytest.mark.parametrize(
    ("script", "how"),
    [
        ("import os; os.kill(os.getpid(), 9)", "died of SIGKILL"),
        ("import sys; sys.exit(3)", "ended with exit code 3"),
        ("raise RuntimeError('a bug of theirs')", "ended with exit code 1"),
    ],
)
def test_a_feeder_that_dies_is_reported_once(
    run: RunDirectory, beside: Beside, script: str, how: str
) -> None:
    beside(script)
    seen: list[Event] = []

    def observe(event: Event) -> None:
        seen.append(event)
        if isinstance(event, Alert):
            (run.path / "missed").touch()  # the worker is alive until then

    assert launch(run, waits=True, observe=observe) is ExitCode.DONE
    said = [event for event in seen if isinstance(event, Alert)]
    assert [alert.code for alert in said] == ["trackers-lost"]
    assert f"TensorBoard and Weights & Biases {how}" in said[0].message
    assert "training does not depend on it" in said[0].message
    assert str(run.path / "track.log") in said[0].remedy
    kinds = [type(event).__name__ for event in seen]
    assert kinds.index("Alert") < kinds.index("Completed")  # reported while the worker was alive
    assert "a bug" not in said[0].message


def test_a_feeder_that_hangs_continues_in_the_background(
    run: RunDirectory, beside: Beside, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "_FINISHING_SECONDS", 1.0)
    monkeypatch.setattr(supervisor, "_SILENT_SECONDS", 0.2)
    beside(HANGS + "print('late')")
    assert launch(run) is ExitCode.DONE
    assert (run.path / "track.log").read_text() == ""
    (run.path / "go").touch()
    assert "may take up to 1 s" in alerts(run)["trackers-finishing"].message
    assert "continues in the background" in alerts(run)["trackers-lost"].message
    deadline = time.monotonic() + HANG_SECONDS
    while not (run.path / "track.log").read_text() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert (run.path / "track.log").read_text() == "late\n"


def test_a_ctrl_c_leaves_it_at_once(
    run: RunDirectory, beside: Beside, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "_SILENT_SECONDS", 0.2)
    beside(HANGS + "print('late')")

    def observe(event: Event) -> None:
        if isinstance(event, Alert) and event.code == "trackers-finishing":
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(supervisor, "_FINISHING_SECONDS", HANG_SECONDS)
    assert launch(run, observe=observe) is ExitCode.DONE
    assert (run.path / "track.log").read_text() == ""
    (run.path / "go").touch()


def test_failed_and_offline_trackers_are_reported(run: RunDirectory, beside: Beside) -> None:
    beside("""
        import json, sys
        from pathlib import Path
        sys.stdin.read()
        memory = {
            "tensorboard": {"failed": "no space"},
            "wandb": {"offline": "no login", "upload": "wandb sync x"},
            "swanlab": {"failed": "of an earlier start, where it was asked for"},
        }
        (Path(sys.argv[1]) / "track.json").write_text(json.dumps(memory))
    """)
    launch(run)
    said = alerts(run)
    assert said.keys() == {"tensorboard-failed", "wandb-offline"}
    assert "TensorBoard failed: no space" in said["tensorboard-failed"].message
    assert said["wandb-offline"].remedy == "Upload them: wandb sync x"
    assert "no login" in said["wandb-offline"].message


def test_a_run_that_is_refused_leaves_nothing(
    run: RunDirectory, beside: Beside, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "_FINISHING_SECONDS", 2 * HANG_SECONDS)
    beside(HANGS)
    started = time.monotonic()
    with pytest.raises(DpoError, match="row 3 is broken"):
        launch(run, worker=REFUSES)
    assert time.monotonic() - started < HANG_SECONDS
    assert find_runs(run.path.parent) == []
    assert list(run.path.parent.iterdir()) == []


def test_a_feeder_that_cannot_be_started(run: RunDirectory, beside: Beside) -> None:
    (run.path / "track.log").symlink_to(run.path / "elsewhere")
    assert launch(run) is ExitCode.DONE
    assert "could not be started" in alerts(run)["trackers-lost"].message


def test_it_ends_by_itself_when_the_launcher_dies(run: RunDirectory) -> None:
    read, write = os.pipe()
    process = subprocess.Popen(supervisor.feeder_argv(run), stdin=read, stderr=subprocess.PIPE)
    os.close(read)
    os.close(write)
    _, errors = process.communicate(timeout=HANG_SECONDS)
    assert (process.returncode, errors) == (0, b"")
