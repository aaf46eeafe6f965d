"""Faults 1, 14, 27: a worker that is killed at any time, or stopped while it saves."""

from __future__ import annotations

import os
import signal
import time
from functools import partial
from pathlib import Path

import pytest

from dpo_cli.run.directory import RunDirectory
from dpo_cli.run.events import EventReader, Resumed, StepDone, WorkerStarted
from dpo_cli.training.reference import REFERENCE_FILE
from tests.faults.conftest import SAVE_STEPS, STEPS, arguments
from tests.faults.storm import storm
from tests.support import warm, worker_faults, workers
from tests.support.cli import HANG_SECONDS, Run, dpo, start


def test_a_storm_of_kills(shared: Path, tmp_path: Path) -> None:
    """25 kills of one run at random times; `make storm` does 100."""
    storm(shared, tmp_path, kills=25, seed=0)


@pytest.mark.parametrize("lost", ["nothing", "random numbers", "position", "first moment"])
def test_what_is_left_out_of_the_state_is_noticed(
    half: RunDirectory, whole: RunDirectory, lost: str
) -> None:
    """Negative controls of `assert_equal`, which fails if a resume forgets a part of the state."""
    assert workers.work(half, partial(worker_faults.forget, lost)) == 0
    if lost == "nothing":
        workers.assert_equal(half, whole)
    else:
        with pytest.raises(AssertionError):
            workers.assert_equal(half, whole)


@pytest.mark.parametrize("torn", [1, 40, 200])
def test_a_stream_torn_in_mid_line(half: RunDirectory, whole: RunDirectory, torn: int) -> None:
    """The torn line is dropped; metrics of repeated steps appear once."""
    assert workers.work(half, partial(worker_faults.kill_at, 8)) == -signal.SIGKILL
    lines = half.events_path.read_bytes().splitlines(keepends=True)
    assert b'"StepDone"' in lines[-1]
    os.truncate(half.events_path, half.events_path.stat().st_size - torn)
    assert workers.work(half) == 0
    workers.assert_equal(half, whole)
    raw = list(EventReader(half.events_path).read_new())
    assert sum(isinstance(event, Resumed) for event in raw) == 2
    assert (
        sum(isinstance(event, StepDone) for event in raw) == STEPS + (8 - 6) - 1
    )  # the torn line is no event


def test_sigterm_while_it_saves(half: RunDirectory, whole: RunDirectory) -> None:
    """The commit finishes, and the run stops as requested."""
    assert workers.work(half, partial(worker_faults.terminate_at_save, 6)) == 143
    checkpoint, passed_over = half.newest_verified()
    assert checkpoint is not None
    assert passed_over == []
    assert checkpoint.optimizer_step >= 6
    assert workers.work(half) == 0
    workers.assert_equal(half, whole)


def test_the_same_through_dpo_itself(shared: Path, tmp_path: Path, whole: RunDirectory) -> None:
    """Through `dpo`: killed in a save, then a torn stream and damaged log-probs, then SIGTERM."""
    train = start(*arguments(shared), "--plain", cwd=tmp_path)
    run = _during_a_save(tmp_path, train)
    [started] = [e for e in Run(run).events if isinstance(e, WorkerStarted)]
    os.kill(started.pid, signal.SIGKILL)
    output, _ = train.communicate(timeout=HANG_SECONDS)
    assert train.returncode == 1, output
    assert "the worker died of SIGKILL" in output
    assert f"Continue with: dpo resume {run.name}" in output
    assert "the newest intact checkpoint is step-" in output

    os.truncate(run.events_path, run.events_path.stat().st_size - 30)
    os.truncate(run.path / REFERENCE_FILE, 500)
    resume = start("resume", run.name, "--plain", cwd=tmp_path)
    _during_a_save(tmp_path, resume)
    resume.send_signal(signal.SIGTERM)
    output, _ = resume.communicate(timeout=HANG_SECONDS)
    assert resume.returncode == 143, output
    _, passed_over = run.newest_verified()
    assert passed_over == []

    last = dpo("resume", run.name, "--plain", cwd=tmp_path)
    assert last.returncode == 0, last.stdout + last.stderr
    workers.assert_equal(run, whole)
    workers.assert_little_lost(run, 2, STEPS, SAVE_STEPS)


def _during_a_save(cwd: Path, process: warm.Process) -> RunDirectory:
    """Wait until a checkpoint other than the first is being written."""
    dead = set(cwd.glob("runs/*/checkpoints/tmp-*"))  # files of a killed worker
    while process.poll() is None:
        for checkpoints in cwd.glob("runs/*/checkpoints"):
            is_first = not any(checkpoints.glob("step-*"))
            if not is_first and set(checkpoints.glob("tmp-*")) - dead:
                return RunDirectory(checkpoints.parent)
        time.sleep(0.001)
    raise AssertionError(process.communicate()[0])
