"""Ranks that share one model train as one process does; see `tests.distributed.test_ranks`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from dpo_cli.distributed.process_group import ProcessGroup
from dpo_cli.distributed.shards import whole
from dpo_cli.models.options import decoder_blocks
from dpo_cli.run.directory import RunDirectory
from tests.support import rank_faults, ranks, workers
from tests.support.cli import Run
from tests.support.small_runs import golden_run

UNEVEN: dict[str, Any] = {
    "train.epochs": 2,
    "train.batch_size": 4,
    "train.global_batch_size": 24,
    "eval.num_samples": 2,
}
"""21 pairs: in the second step of an epoch some ranks have no pair."""


def new_run(shared: Path, root: Path, **changes: Any) -> RunDirectory:
    keys = {**UNEVEN, **changes}
    return workers.new_run(root, golden_run(shared, "head", False, **keys))


def sharded(shared: Path, root: Path, **changes: Any) -> RunDirectory:
    return new_run(shared, root, **{"launch.strategy": "shard", **changes})


def test_smoke(shared: Path, tmp_path: Path) -> None:
    one = new_run(shared, tmp_path / "one")
    assert ranks.work(one, 1) == [0]
    two = sharded(shared, tmp_path / "two")
    codes = ranks.work(two, 2)
    print(two.worker_log_path.read_text()[-6000:])
    assert codes == [0, 0]
    a, b = Run(one), Run(two)
    print(a.losses, b.losses, a.grad_norms, b.grad_norms)
    print(a.evaluations, b.evaluations)
    assert a.losses == pytest.approx(b.losses, abs=1e-6, rel=0)
