"""Fault 2: after SIGKILL at any step of a commit, the old checkpoint or the new one is intact."""

from __future__ import annotations

import signal
from functools import partial
from pathlib import Path

import pytest

from dpo_cli.run.directory import RunDirectory
from tests.support import failpoints, workers
from tests.support.data_faults import both
from tests.support.worker_faults import own_cache

SAVED = 6
"""Optimizer step whose save is killed; the checkpoints of steps 3 and 5 exist before."""

FILES = ["exp_avg.safetensors", "exp_avg_sq.safetensors", "rng.safetensors", "weights.safetensors"]
WRITTEN = ["write", "write half of", "fsync", "rename"]
MANIFEST = ["write", "fsync", "fsync", "rename"]
BEFORE_THE_RENAME = [
    "write .rlhf_64.pth.*.tmp",
    "fsync .rlhf_64.pth.*.tmp",
    "rename .rlhf_64.pth.*.tmp",
    "fsync the run's directory",
    *(f"{verb} .reference_logps.safetensors.*.tmp" for verb in WRITTEN),
    "fsync the run's directory",
    *(f"{verb} .reference_logps.safetensors.json.*.tmp" for verb in MANIFEST),
    "fsync the run's directory",
    "mkdir reference",  # in the cache: the epoch ends with this step, so all log-probs are computed
    *(f"{verb} .**.safetensors.*.tmp" for verb in WRITTEN),
    "fsync reference",
    *(f"{verb} .**.safetensors.json.*.tmp" for verb in MANIFEST),
    "fsync reference",
    "fsync events.jsonl",
    "mkdir tmp-*",
    *(f"{verb} tmp-*/{file}" for file in FILES for verb in ("write", "write half of")),
    "write tmp-*/state.json",
    *(f"fsync tmp-*/{file}" for file in [*FILES, "state.json"]),
    "write tmp-*/manifest.json",
    "fsync tmp-*/manifest.json",
    "fsync tmp-*",
    "rename tmp-*",
]
AFTER_THE_RENAME = [
    "fsync checkpoints",
    "rename step-00000003",
    *(f"unlink {number}" for number in range(1, 7)),
    "rmdir tmp-*",
]


def test_these_are_all_steps(half: RunDirectory, tmp_path: Path) -> None:
    recorded = tmp_path / "steps"
    fault = partial(failpoints.record, recorded, SAVED)
    assert workers.work(half, partial(both, partial(own_cache, tmp_path / "cache"), fault)) == 0
    steps = recorded.read_text().splitlines()
    assert sorted(steps) == sorted([*BEFORE_THE_RENAME, *AFTER_THE_RENAME])
    assert steps.index("rename tmp-*") == len(BEFORE_THE_RENAME) - 1


@pytest.mark.parametrize("step", dict.fromkeys([*BEFORE_THE_RENAME, *AFTER_THE_RENAME]))
def test_killed_right_before(
    half: RunDirectory, whole: RunDirectory, tmp_path: Path, step: str
) -> None:
    fault = partial(failpoints.kill_before, step, SAVED)
    code = workers.work(half, partial(both, partial(own_cache, tmp_path / "cache"), fault))
    assert code == -signal.SIGKILL
    checkpoint, passed_over = half.newest_verified()
    assert checkpoint is not None
    assert checkpoint.optimizer_step == (5 if step in BEFORE_THE_RENAME else SAVED)
    assert passed_over == []
    assert workers.work(half) == 0
    workers.assert_equal(half, whole)
    [kept] = half.checkpoints_path.iterdir()  # and no other file is left
    assert kept.name == "step-00000012"
    assert not list(half.path.glob(".*.tmp"))
