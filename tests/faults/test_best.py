"""Tests of the best checkpoint and the patience of a run under faults."""

from __future__ import annotations

import shutil
import signal
from functools import partial
from pathlib import Path

import pytest
import torch

from dpo_cli.run.checkpoints import list_checkpoints
from dpo_cli.run.directory import RunDirectory
from dpo_cli.run.events import Completed, Evaluated, Saved
from dpo_cli.training.checkpointing import load_weights
from tests.support import worker_faults, workers
from tests.support.cli import Run, dpo
from tests.support.small_runs import golden_run


def arguments(shared: Path) -> list[str]:
    """Return arguments of a run that first improves and then gets worse; only the best is saved."""
    changes = {
        "data.max_seq_len": 64,
        "eval.fraction": 0.3,
        "eval.interval": 2,
        "eval.keep_best": True,
        "eval.patience": 3,
        "train.learning_rate": 1e-3,
        "train.save_interval": 1000,
    }
    return golden_run(shared, "seed", False, **changes)


@pytest.fixture(scope="module")
def whole(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """Run that ended because its patience was used up; read only."""
    run = workers.new_run(tmp_path_factory.mktemp("best"), arguments(shared))
    assert workers.work(run) == 0
    return run


@pytest.fixture
def copied(whole: RunDirectory, tmp_path: Path) -> RunDirectory:
    """Copy of `whole`, to be damaged."""
    return RunDirectory(Path(shutil.copytree(whole.path, tmp_path / "runs" / whole.name)))


def best_step(run: RunDirectory) -> int:
    """Return the step of the lowest held-out loss."""
    evaluations = [event for event in Run(run).events if isinstance(event, Evaluated)]
    return min(evaluations, key=lambda event: event.metrics["loss"]).optimizer_step


def test_the_best_state_and_its_weights_outlive_the_run(whole: RunDirectory) -> None:
    best, end = best_step(whole), Run(whole).steps[-1].optimizer_step
    assert 0 < best < end
    checkpoints = list_checkpoints(whole.checkpoints_path)
    assert [checkpoint.optimizer_step for checkpoint in checkpoints] == [end, best]
    state = Run(whole).architecture.to_native_names(load_weights(checkpoints[1].path))
    written = torch.load(whole.path / "rlhf_best_64.pth", weights_only=True)
    assert all(torch.equal(written[name], tensor.half()) for name, tensor in state.items())
    saved = [event for event in Run(whole).events if isinstance(event, Saved)]
    assert [event.optimizer_step for event in saved if event.is_best][-1] == best
    assert not saved[-1].is_best


def test_it_ended_as_soon_as_three_evaluations_were_no_better(whole: RunDirectory) -> None:
    events = Run(whole).events
    [completed] = [event for event in events if isinstance(event, Completed)]
    evaluated = [e.optimizer_step for e in events if isinstance(e, Evaluated)]
    assert evaluated[-4:] == [best_step(whole), *evaluated[-3:]]
    assert completed.optimizer_step == evaluated[-1] == Run(whole).steps[-1].optimizer_step
    plan = whole.read_plan()
    assert plan is not None
    assert completed.optimizer_step < plan.steps.optimizer_steps
    assert "in 3 evaluations" in completed.reason
    assert f"optimizer step {best_step(whole)}" in completed.reason


@pytest.mark.parametrize("after", [-1, 1])
def test_killed_before_and_after_the_best(
    shared: Path, tmp_path: Path, whole: RunDirectory, after: int
) -> None:
    run = workers.new_run(tmp_path, arguments(shared))
    arm = partial(worker_faults.kill_at, best_step(whole) + after)
    assert workers.work(run, arm) == -signal.SIGKILL
    assert workers.work(run) == 0
    workers.assert_equal(run, whole)
    states = [
        {g.optimizer_step for g in list_checkpoints(r.checkpoints_path)} for r in (run, whole)
    ]
    assert states[0] == states[1]


def test_export_and_resume_after_patience_is_used_up(copied: RunDirectory) -> None:
    best, cwd = best_step(copied), copied.path.parent.parent
    out = cwd / "best.pth"

    exported = dpo("export", copied.name, "--best", "--to", str(out), cwd=cwd)
    assert exported.returncode == 0, exported.stdout + exported.stderr
    assert f"after step {best}" in exported.stdout
    written, kept = (
        torch.load(path, weights_only=True) for path in (out, copied.path / "rlhf_best_64.pth")
    )
    assert all(torch.equal(written[name], tensor) for name, tensor in kept.items())

    over = dpo("resume", copied.name, cwd=cwd)
    assert over.returncode == 0
    assert "already complete. Train longer with more patience: --set eval.patience=6" in over.stdout
    epochs = dpo("resume", copied.name, "--set", "train.epochs=13", "--allow-changes", cwd=cwd)
    assert epochs.returncode == 2
    assert "--set eval.patience=6" in epochs.stderr
    steps = len(Run(copied).steps)
    more = dpo("resume", copied.name, "--set", "eval.patience=4", "--plain", cwd=cwd)
    assert more.returncode == 0, more.stdout + more.stderr
    assert len(Run(copied).steps) > steps
    assert "no lower held-out loss in" in more.stdout

    shutil.rmtree(list_checkpoints(copied.checkpoints_path)[-1].path)
    gone = dpo("export", copied.name, "--best", "--to", str(out), cwd=cwd)
    assert gone.returncode == 1
    assert "is not kept, or damaged" in gone.stderr


def test_killed_between_the_last_save_and_the_mark(
    copied: RunDirectory, whole: RunDirectory
) -> None:
    """No step follows the one at which patience was used up."""
    copied.completed_path.unlink()
    assert workers.work(copied) == 0
    workers.assert_equal(copied, whole)
    assert len(Run(copied).steps) == len(Run(whole).steps)


def test_a_damaged_best_state_endangers_nothing(copied: RunDirectory, whole: RunDirectory) -> None:
    copied.completed_path.unlink()
    _, best = list_checkpoints(copied.checkpoints_path)
    (best.path / "weights.safetensors").write_bytes(b"")
    assert workers.work(copied) == 0
    workers.assert_equal(copied, whole)


def test_a_best_file_of_steps_that_were_lost_is_made_anew(
    copied: RunDirectory, whole: RunDirectory
) -> None:
    copied.completed_path.unlink()
    (copied.path / "rlhf_best_64.pth").write_bytes((copied.path / "rlhf_64.pth").read_bytes())
    assert workers.work(copied) == 0
    workers.assert_equal(copied, whole)
