"""Fixtures of the fault tests: an undisturbed run, and one that was stopped halfway.

The golden model with 64 hidden units trains on short pairs: a step takes 20 to 50 ms.
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
"""Optimizer steps of the whole run, six per epoch."""
SAVE_STEPS = 2
"""Largest number of optimizer steps between two saves (every third micro-batch, two per step)."""


def arguments(shared: Path, epochs: int = 2) -> list[str]:
    """Return arguments of a dense run with dropout, accumulation and held-out pairs."""
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
    """Run without a fault; read only."""
    run = workers.new_run(tmp_path_factory.mktemp("whole"), arguments(shared))
    assert workers.work(run) == 0
    return run


@pytest.fixture(scope="session")
def stopped(
    shared: Path, whole: RunDirectory, tmp_path_factory: pytest.TempPathFactory
) -> RunDirectory:
    """Run stopped after 5 optimizer steps, with two checkpoints; only to be copied."""
    # Half of the reference's log-probs are computed, whatever the cache of other tests contains.
    arm = partial(both, partial(own_cache, tmp_path_factory.mktemp("cache")), partial(stop_at, 5))
    run = workers.new_run(tmp_path_factory.mktemp("stopped"), arguments(shared))
    assert workers.work(run, arm) == 143
    return run


@pytest.fixture
def half(stopped: RunDirectory, tmp_path: Path) -> RunDirectory:
    """Copy of `stopped`, to be damaged and resumed."""
    return RunDirectory(Path(shutil.copytree(stopped.path, tmp_path / "runs" / stopped.name)))
