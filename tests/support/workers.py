"""Real workers without five seconds of imports: forks of a server that has imported all modules.

The fork runs `dpo_cli.training.worker.main` on a run directory, as the launcher would, with the
same lock, log and exit code. `arm` runs in the new process first; tests arm their faults there.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

from dpo_cli.profile.load import load_profile
from dpo_cli.profile.resolved import to_toml
from dpo_cli.run.directory import RunDirectory
from dpo_cli.run.events import (
    Event,
    EventReader,
    Resumed,
    Saved,
    StepDone,
    WorkerStarted,
)
from tests.support.cli import HANG_SECONDS, Run
from tests.support.forks import forked

Arm = Callable[[], object]


def start(run: RunDirectory, arm: Arm | None = None, *options: str) -> BaseProcess:
    """Start a worker on a run, with `options` of its command line."""
    process = forked(_work, run, arm, options)
    process.start()
    return process


def call(function: Callable[[], object], seconds: float = HANG_SECONDS) -> int:
    """Run any function in a process like a worker's; return its exit code."""
    process = forked(function)
    process.start()
    return wait(process, seconds)


def wait(process: BaseProcess, seconds: float = HANG_SECONDS) -> int:
    """Wait for a process; return the exit code, negative for a signal, as in subprocess."""
    process.join(seconds)
    code = process.exitcode
    if code is None:
        process.kill()
        raise AssertionError(f"it still runs after {seconds} s")
    return code


def work(
    run: RunDirectory, arm: Arm | None = None, *options: str, seconds: float = HANG_SECONDS
) -> int:
    """Start a worker and wait for its end."""
    return wait(start(run, arm, *options), seconds)


def _work(run: RunDirectory, arm: Arm | None, options: tuple[str, ...]) -> None:
    from dpo_cli.training import worker

    run.lock()
    log = os.open(run.worker_log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    if arm is not None:
        arm()
    sys.exit(worker.main([str(run.path), *options]))


def new_run(root: Path, arguments: list[str]) -> RunDirectory:
    """Return the run directory that `dpo train` makes for these arguments, without a worker."""
    _, profile, *options = arguments
    loaded = load_profile(Path(profile), [option for option in options if option != "--set"])
    return RunDirectory.create(root, loaded.name, to_toml(loaded.profile))


def until(
    run: RunDirectory, condition: Callable[[list[Event]], object], seconds: float = HANG_SECONDS
) -> None:
    """Wait until the events of a run, including the void ones, fulfil a condition."""
    reader = EventReader(run.events_path)
    events: list[Event] = []
    deadline = time.monotonic() + seconds
    while not condition(events):
        assert time.monotonic() < deadline, events[-3:]
        time.sleep(0.005)
        events += reader.read_new()


def until_step(run: RunDirectory, optimizer_step: int) -> None:
    """Wait until a run has done an optimizer step."""
    until(
        run,
        lambda events: any(
            isinstance(e, StepDone) and e.optimizer_step >= optimizer_step for e in events
        ),
    )


def until_steps(run: RunDirectory, process: BaseProcess, steps: int) -> StepDone:
    """Wait until the current worker has done more than `steps` steps; return the last one."""
    reader = EventReader(run.events_path)
    done: list[StepDone] = []
    while process.exitcode is None and len(done) <= steps:
        time.sleep(0.002)
        for event in reader.read_new():
            if isinstance(event, WorkerStarted):
                done = []
                started = event.pid
            elif isinstance(event, StepDone) and started == process.pid:
                done.append(event)
    return done[-1]


def kill(process: BaseProcess) -> None:
    """Send SIGKILL to a process that may have ended already."""
    assert process.pid is not None
    if process.exitcode is None:
        os.kill(process.pid, signal.SIGKILL)
    process.join()


def assert_equal(resumed: RunDirectory, whole: RunDirectory) -> None:
    """Assert that two runs are bit-identical: metrics, evaluations, checkpoint, weights file."""
    a, b = Run(resumed), Run(whole)
    assert a.directory.is_completed
    assert a.metric_rows == b.metric_rows
    assert a.evaluations == b.evaluations
    assert a.files() == b.files()
    results = {path.name: path.read_bytes() for path in resumed.path.glob("*_64*.pth")}
    assert results == {path.name: path.read_bytes() for path in whole.path.glob("*_64*.pth")}
    assert results


def assert_little_lost(run: RunDirectory, kills: int, steps: int, save_steps: int) -> None:
    """Assert that each start continued from the last checkpoint, never from scratch.

    Args:
        run: run that was killed and resumed.
        kills: number of kills.
        steps: optimizer steps of the uninterrupted run.
        save_steps: largest number of optimizer steps between two saves.
    """
    events = list(EventReader(run.events_path).read_new())
    executed = sum(isinstance(event, StepDone) for event in events)
    assert executed <= steps + kills * (save_steps + 1)
    reached = 0
    for event in events:
        if isinstance(event, Resumed):
            assert event.optimizer_step >= reached
        elif isinstance(event, Saved):
            reached = event.optimizer_step
