"""Faults 18, 19: many processes resume one run at once, and a trainer that dies silently."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

from dpo_cli.run.directory import RunDirectory
from dpo_cli.run.events import EventReader, Resumed, WorkerStarted
from tests.support import workers
from tests.support.cli import HANG_SECONDS
from tests.support.process_faults import (
    assert_goes_on_and_ends_equal,
    held,
    hold_at,
    started,
    starts,
    until,
    worker_of,
)

WRITERS = 20


def test_of_twenty_that_resume_at_once_one_trains(
    half: RunDirectory, whole: RunDirectory, tmp_path: Path
) -> None:
    checkpoint, _ = half.newest_verified()
    assert checkpoint is not None
    with contextlib.ExitStack() as processes:
        writers = [
            processes.enter_context(
                started("resume", half.name, "--plain", cwd=tmp_path, changes=hold_at(6))
            )
            for _ in range(WRITERS)
        ]
        with held(half, starts(2)):  # the first start was before the stop
            until(lambda: sum(writer.poll() is None for writer in writers) == 1)
        outputs = {
            writer: writer.communicate(timeout=HANG_SECONDS)[0].decode() for writer in writers
        }
    [winner] = [writer for writer in writers if writer.returncode == 0]
    assert [writer.returncode for writer in writers if writer is not winner] == [1] * (WRITERS - 1)
    for writer, output in outputs.items():
        if writer is not winner:
            assert f"is being trained by process {winner.pid} on" in output
            assert f"dpo stop {half.name}" in output
    events = list(EventReader(half.events_path).read_new())
    assert sum(isinstance(event, WorkerStarted) for event in events) == 2
    [resumed] = [event for event in events if isinstance(event, Resumed)]
    assert resumed.optimizer_step == checkpoint.optimizer_step
    workers.assert_equal(half, whole)


def test_the_lock_of_a_killed_one_is_free_at_once(half: RunDirectory, whole: RunDirectory) -> None:
    process = workers.start(half)
    workers.until_step(half, 7)
    workers.kill(process)
    killed = time.time()
    [lock] = half.path.glob("lock")
    assert f"process {process.pid} on" in lock.read_text()  # no process has removed the lock
    assert half.holder() is None
    process = workers.start(half)
    workers.until(half, starts(3))
    assert worker_of(half) == process.pid
    *_, start = (
        e for e in EventReader(half.events_path).read_new() if isinstance(e, WorkerStarted)
    )
    assert start.time - killed < 2
    workers.kill(process)
    assert_goes_on_and_ends_equal(half, whole)
