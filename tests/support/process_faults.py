"""Faults of limits and clocks for `tests.support.workers`, and real `dpo` processes to inject them.

A real worker trains for one second after five seconds of imports. To hit the right moment, the
worker stops itself (SIGSTOP) at a step, and continues after the test has injected the fault.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import IO

import pytest

from dpo_cli.run.directory import RunDirectory
from dpo_cli.run.event_writer import EventWriter
from dpo_cli.run.events import Event, EventReader, Resumed, StepDone, WorkerStarted
from dpo_cli.run.lookup import find_runs
from tests.support import workers
from tests.support.cli import DPO, HANG_SECONDS, REPOSITORY, environment
from tests.support.worker_faults import at_step

DAY_SECONDS = 86400.0

# --- arms -----------------------------------------------------------------------------------------


def limit_files(size_bytes: int) -> None:
    """Limit the size of all files, like `ulimit -f`."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, size_bytes))


def limit_stream_at(optimizer_step: int, events: Path) -> None:
    """After a step, limit the size of all files to the event stream and half a line."""
    at_step(optimizer_step, lambda: limit_files(events.stat().st_size + 100))


def clock_jumps(jumps: dict[int, float]) -> None:
    """After each optimizer step in `jumps`, shift the wall clock by this number of seconds."""
    off_seconds = 0.0
    true_time = time.time
    append = EventWriter.append

    def jumping(self: EventWriter, event: Event) -> None:
        nonlocal off_seconds
        # Events take their time from a reference to the true `time.time`.
        append(self, replace(event, time=event.time + off_seconds))
        if isinstance(event, StepDone):
            off_seconds = jumps.get(event.optimizer_step, off_seconds)

    EventWriter.append = jumping  # type: ignore[method-assign]
    time.time = lambda: true_time() + off_seconds


# --- a real `dpo` ---------------------------------------------------------------------------------


@contextlib.contextmanager
def started(
    *arguments: str,
    cwd: Path,
    stdout: int | IO[bytes] = subprocess.PIPE,
    changes: Mapping[str, str] | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a real `dpo` in its own process, and end the process with the block.

    Args:
        arguments, cwd, stdout: settings of the process.
        changes: changes to the environment, for example `hold_at`.
    """
    process = subprocess.Popen(
        [*DPO, *arguments],
        cwd=cwd,
        env=environment(**(changes or {})),
        stdout=stdout,
        stderr=subprocess.STDOUT,
    )
    try:
        yield process
    finally:
        process.kill()  # the kernel then kills the worker
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def the_run(cwd: Path) -> RunDirectory:
    """Wait for the run of a `dpo train` in `cwd`, and return the run."""
    until(lambda: find_runs(cwd / "runs"))
    [run] = find_runs(cwd / "runs")
    return run


def until(condition: Callable[[], object], seconds: float = HANG_SECONDS) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition never held"
        time.sleep(0.005)


def steps(optimizer_step: int) -> Callable[[list[Event]], object]:
    """Return a condition: an optimizer step was done."""
    return lambda events: any(
        isinstance(event, StepDone) and event.optimizer_step >= optimizer_step for event in events
    )


def starts(count: int) -> Callable[[list[Event]], object]:
    """Return a condition: `count` workers have started on the run."""
    return lambda events: sum(isinstance(event, WorkerStarted) for event in events) >= count


def worker_of(run: RunDirectory) -> int:
    """Return the process id of the worker that started last."""
    events = EventReader(run.events_path).read_new()
    return [event.pid for event in events if isinstance(event, WorkerStarted)][-1]


def hold_at(optimizer_step: int, rank: int = 0) -> dict[str, str]:
    """Return an environment that stops a rank after a step; rank 0 stops itself, for `held`."""
    hold = Path(__file__).parent / "hold"
    return {
        "PYTHONPATH": f"{REPOSITORY}{os.pathsep}{hold}",
        "DPO_TEST_HOLD_AT": str(optimizer_step),
        "DPO_TEST_HOLD_RANK": str(rank),
    }


@contextlib.contextmanager
def held(run: RunDirectory, is_reached: Callable[[list[Event]], object]) -> Iterator[int]:
    """Wait until the worker of a run with `hold_at` is stopped; continue it after the block.

    Args:
        run: run with a worker under `hold_at`.
        is_reached: condition that holds from the step at which the worker stops itself.
    """
    workers.until(run, is_reached)
    pid = worker_of(run)
    try:
        until(lambda: _status(pid, "State").startswith("T"))
        assert not run.is_completed, "the run was over before it could be held"
        yield pid
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def descendants(pid: int) -> list[int]:
    """Return the children of a process, their children, and so on."""
    children = []
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            children += map(int, (task / "children").read_text().split())
    return children + [each for child in children for each in descendants(child)]


def kill_parent(process: subprocess.Popen[bytes], *, hold_children: bool) -> list[int]:
    """Kill a process; return its descendants, which must end by themselves.

    Args:
        process: process to kill.
        hold_children: pause the descendants until the process is dead.
    """
    process.send_signal(signal.SIGSTOP)  # so that it starts no other child
    until(lambda: _status(process.pid, "State")[:1] in ("T", "Z", ""))
    family = descendants(process.pid)
    for pid in family if hold_children else ():
        os.kill(pid, signal.SIGSTOP)
    process.kill()
    process.wait()
    for pid in family if hold_children else ():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
    return family


def awaits(pid: int, number: signal.Signals) -> bool:
    """Return True if a signal is pending for a stopped process."""
    return bool(int(_status(pid, "ShdPnd"), 16) >> (number - 1) & 1)


def is_gone(pid: int) -> bool:
    """Return True if a process has ended, reaped or not."""
    return _status(pid, "State")[:1] in ("", "Z")


def _status(pid: int, field: str) -> str:
    """Return a line of /proc/PID/status, or "" if there is no such process."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(f"{field}:"):
                return line.split(":", 1)[1].strip()
    return ""


def assert_goes_on_and_ends_equal(run: RunDirectory, whole: RunDirectory) -> None:
    """Assert that a resume starts at the last committed step and ends like an undisturbed run."""
    assert not run.is_completed
    checkpoint, passed_over = run.newest_verified()
    assert checkpoint is not None
    assert passed_over == []
    assert workers.work(run) == 0
    *_, resumed = (e for e in EventReader(run.events_path).read_new() if isinstance(e, Resumed))
    assert resumed.optimizer_step == checkpoint.optimizer_step
    workers.assert_equal(run, whole)


def mounting(script: str, *arguments: str | Path) -> list[str]:
    """Return a command that runs a bash script with its own mount namespace.

    The script exits with 99 where a mount of its own fails.
    """
    probe = ["unshare", "--mount", "mount", "-t", "tmpfs", "none", "/mnt"]
    if subprocess.run(probe, capture_output=True, check=False).returncode:
        pytest.skip("needs to mount a file system")
    return ["unshare", "--mount", "bash", "-c", script, "bash", *map(str, arguments)]
