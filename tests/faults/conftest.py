"""What the faults share: a run that nothing happened to, and one that stands in the middle.

The golden checkpoint with 64 hidden units on short pairs: a step takes 20 to 50 ms.
"""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

import pytest

from dpo_cli.run.directory import RunDirectory
from tests.support import workers
from tests.support.data_faults import both
from tests.support.small_runs import golden_run
from tests.support.worker_faults import own_cache, stop_at

STEPS = 12
"""Optimizer steps of the whole run, six an epoch."""
SAVE_STEPS = 2
"""From one save to the next, at most: each third micro-batch, of two a step."""


def arguments(shared: Path, epochs: int = 2) -> list[str]:
    """Dense, with dropout (so that random numbers count), accumulation and held-out pairs."""
    changes = {
        "model.dropout": 0.1,
        "data.max_seq_len": 64,
        "train.batch_size": 1,
        "train.accumulation_steps": 2,
        "train.epochs": epochs,
        "eval.interval": 5,
    }
    return golden_run(shared, "seed", False, **changes)


@pytest.fixture(scope="session")
def whole(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A run that ended undisturbed. Only to be read."""
    run = workers.new_run(tmp_path_factory.mktemp("whole"), arguments(shared))
    assert workers.work(run) == 0
    return run


@pytest.fixture(scope="session")
def stopped(
    shared: Path, whole: RunDirectory, tmp_path_factory: pytest.TempPathFactory
) -> RunDirectory:
    """The same run, stopped after 5 optimizer steps, with two checkpoints. Only to be copied."""
    # Its reference is half known, whatever the cache of other tests holds.
    arm = partial(both, partial(own_cache, tmp_path_factory.mktemp("cache")), partial(stop_at, 5))
    run = workers.new_run(tmp_path_factory.mktemp("stopped"), arguments(shared))
    assert workers.work(run, arm) == 143
    return run


@pytest.fixture
def half(stopped: RunDirectory, tmp_path: Path) -> RunDirectory:
    """A copy of `stopped`, to be harmed and resumed."""
    return RunDirectory(Path(shutil.copytree(stopped.path, tmp_path / "runs" / stopped.name)))
