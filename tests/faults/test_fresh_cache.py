"""Tests that the presence and the damage of the cache change no bit of a run."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from dpo_cli.run.directory import RunDirectory
from tests.faults.conftest import arguments
from tests.support import workers
from tests.support.data_faults import both
from tests.support.worker_faults import at_step, own_cache


def overwrite(cache: Path) -> None:
    """Zero the files of the cache in place, which this package never does."""
    files = [path for path in cache.rglob("*") if path.is_file()]
    assert {"ids.bin", "columns.safetensors"} <= {path.name for path in files}
    for path in files:
        with path.open("r+b") as file:
            file.write(bytes(path.stat().st_size))


def test_an_empty_cache_that_is_overwritten_while_a_run_trains(
    shared: Path, tmp_path: Path, whole: RunDirectory
) -> None:
    cache = tmp_path / "cache"
    run = workers.new_run(tmp_path / "runs", arguments(shared))
    arm = partial(both, partial(own_cache, cache), partial(at_step, 3, partial(overwrite, cache)))
    assert workers.work(run, arm) == 0
    workers.assert_equal(run, whole)
