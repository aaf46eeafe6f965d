"""Tests of the summary of a run from its lock, completion mark and events."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from dpo_cli.run.directory import RunDirectory
from dpo_cli.run.events import Failed, Resumed, Stopped, WorkerEnded, WorkerStarted
from dpo_cli.run.lookup import find_run, find_runs
from dpo_cli.run.plan import OtherVersionError
from dpo_cli.run.summary import summarize
from dpo_cli.run.view import RunState
from tests.support import story

AGAIN = WorkerStarted(pid=8, device="cpu", device_name="", dtype="float32", versions={})
TRAINED = [*story.preparation(), *story.training(0, 110)]


def test_a_completed_run(tmp_path: Path) -> None:
    run = story.write(tmp_path, "dense", *story.whole())
    summary = summarize(run)
    assert (summary.name, summary.state, summary.holder) == (run.name, RunState.COMPLETED, None)
    assert (summary.step, summary.total_steps) == (400, 400)
    assert summary.started == story.STARTED
    assert summary.seconds == 606.0
    losses = [story.step_done(step).metrics["loss"] for step in range(362, 401, 2)]
    assert summary.loss == pytest.approx(sum(losses) / 20)
    assert summary.held_out_accuracy == pytest.approx(0.83)
    assert summary.size_bytes == sum(f.stat().st_size for f in run.path.rglob("*") if f.is_file())


@pytest.mark.parametrize(
    ("endings", "state"),
    [
        ([Stopped(reason="interrupted", step=110, optimizer_step=55)], RunState.STOPPED),
        ([Failed(message="m"), WorkerEnded(exit_code=1)], RunState.FAILED),
        ([WorkerEnded(exit_code=1)], RunState.FAILED),
        ([WorkerEnded(exit_code=137, signal=9)], RunState.KILLED),
        ([], RunState.KILLED),
        ([Failed(message="m"), AGAIN], RunState.KILLED),
    ],
)
def test_other_ends(tmp_path: Path, endings: list[story.Event], state: RunState) -> None:
    run = story.write(tmp_path, "dense", *TRAINED, *endings)
    assert summarize(run).state is state
    with run.locked():
        summary = summarize(run)
    assert summary.state is RunState.TRAINING
    assert summary.holder is not None
    assert summary.holder.startswith("process ")


def test_a_run_that_has_just_begun(tmp_path: Path) -> None:
    summary = summarize(story.write(tmp_path, "dense"))
    assert (summary.step, summary.total_steps, summary.loss) == (0, None, None)
    assert (summary.held_out_accuracy, summary.started, summary.seconds) == (None, None, 0)


def test_a_resume_removes_lost_steps_and_adds_up_the_time(tmp_path: Path) -> None:
    resumed = Resumed(step=100, optimizer_step=50, checkpoint="step-00000050", elapsed_seconds=3.0)
    lost = [story.evaluated(110)]
    run = story.write(tmp_path, "dense", *TRAINED, *lost, AGAIN, resumed)
    summary = summarize(run)
    assert summary.step == 100
    assert summary.held_out_accuracy is None
    assert summary.seconds == pytest.approx(170.1 + 3.0)
    losses = [story.step_done(step).metrics["loss"] for step in range(72, 101, 2)]
    assert summary.loss == pytest.approx(sum(losses) / len(losses))


def test_an_incomplete_line_is_ignored(tmp_path: Path) -> None:
    run = story.write(tmp_path, "dense", *TRAINED)
    with run.events_path.open("a") as stream:
        stream.write('{"event": "StepDone", "st')
    assert summarize(run).step == 110
    later = dataclasses.replace(AGAIN, elapsed_seconds=1.0)
    assert summarize(story.write(tmp_path, "moe", later)).step == 0


def test_a_run_of_another_version_is_listed_and_does_not_load(tmp_path: Path) -> None:
    run = story.write(tmp_path, "dense", *TRAINED)
    earlier = RunDirectory.create(tmp_path, "earlier", "")
    earlier.checkpoints_path.rename(earlier.path / "generations")
    later = RunDirectory.create(tmp_path, "later", "")
    later.plan_path.write_text('{"version": 99}')
    states = {each.profile_name: summarize(each).state for each in find_runs(tmp_path)}
    assert states == {
        "dense": RunState.KILLED,
        "earlier": RunState.OTHER_VERSION,
        "later": RunState.OTHER_VERSION,
    }
    assert find_run(tmp_path, "dense") == run
    for name in ("earlier", "later"):
        with pytest.raises(OtherVersionError, match=f"written by an? {name} version of dpo"):
            find_run(tmp_path, name)
