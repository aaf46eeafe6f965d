"""Tests of a sweep of real runs: killed, stopped, and with a failing point."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from dpo_cli.run.directory import RunDirectory
from dpo_cli.run.events import EventReader, Resumed, StepDone, WorkerStarted
from dpo_cli.run.sweep import SweepDirectory
from tests.support import warm, workers
from tests.support.cli import HANG_SECONDS, dpo, start
from tests.support.small_runs import golden_run

GRID = ("--grid", "dpo.beta=[0.1,2,5]", "--grid", "train.learning_rate=[1e-4,1e-3]")
LETTERS = "ABCDEF"


def arguments(shared: Path) -> list[str]:
    """Return the arguments of six runs of six short steps."""
    changes = {"data.max_seq_len": 64, "train.epochs": 2, "eval.interval": 5}
    words = golden_run(shared, "seed", False, **changes)
    rate = next(n for n, word in enumerate(words) if word.startswith("train.learning_rate"))
    return ["sweep", *words[1 : rate - 1], *words[rate + 1 :]]


def runs(cwd: Path) -> dict[str, RunDirectory]:
    return SweepDirectory.of(cwd / "runs", "dense").runs()


def numbers(printed: str) -> Any:
    """Return the table of a sweep, without values that differ between equal runs."""
    told = json.loads(printed)
    for run in told["runs"]:
        for key in ("name", "started", "seconds", "size_bytes"):
            del run[key]
        for alert in run["alerts"]:
            del alert["time"], alert["elapsed_seconds"]
    best = {point["run"]: point["letter"] for point in told["points"]}[told["best"]]
    return told["runs"], told["differences"], told["notes"], best


def starts(run: RunDirectory) -> int:
    return sum(isinstance(e, WorkerStarted) for e in EventReader(run.events_path).read_new())


def until_step(cwd: Path, process: warm.Process, letter: str, step: int) -> RunDirectory:
    """Wait until the run of a point has done a step."""
    deadline = time.monotonic() + HANG_SECONDS
    while True:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        if (run := runs(cwd).get(letter)) is not None:
            events = EventReader(run.events_path).read_new()
            if any(isinstance(event, StepDone) and event.step >= step for event in events):
                return run
        time.sleep(0.01)


@pytest.fixture(scope="module")
def whole(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Undisturbed sweep: its folder and output; read only."""
    cwd = tmp_path_factory.mktemp("whole")
    done = dpo(*arguments(shared), *GRID, "--json", cwd=cwd, timeout=HANG_SECONDS)
    assert done.returncode == 0, done.stderr
    return cwd, done.stdout


def test_killed_in_the_third_run_it_ends_with_the_same_table(
    shared: Path, tmp_path: Path, whole: tuple[Path, str]
) -> None:
    process = start(*arguments(shared), *GRID, "--plain", cwd=tmp_path)
    third = until_step(tmp_path, process, "C", 4)
    process.kill()
    process.communicate()
    deadline = time.monotonic() + HANG_SECONDS
    while third.holder() is not None:
        assert time.monotonic() < deadline, "the worker lives on"
        time.sleep(0.01)
    assert sorted(runs(tmp_path)) == ["A", "B", "C"]

    done = dpo(*arguments(shared), *GRID, "--json", cwd=tmp_path, timeout=HANG_SECONDS)
    assert done.returncode == 0, done.stderr
    assert numbers(done.stdout) == numbers(whole[1])
    resumed, peaceful = runs(tmp_path), runs(whole[0])
    assert [starts(resumed[letter]) for letter in LETTERS] == [1, 1, 2, 1, 1, 1]
    [event] = [e for e in EventReader(third.events_path).read_new() if isinstance(e, Resumed)]
    assert event.checkpoint
    for letter in LETTERS:
        workers.assert_equal(resumed[letter], peaceful[letter])


def test_a_run_of_a_sweep_is_what_dpo_train_makes_of_it(
    shared: Path, tmp_path: Path, whole: tuple[Path, str]
) -> None:
    """The run is forked from a process that has only imports, and reads a cached reference."""
    options = arguments(shared)[1:]
    point = ("--set", "dpo.beta=5", "--set", "train.learning_rate=1e-3", "--plain")
    cache = tmp_path / "cache"
    cache.mkdir()
    trained = dpo("train", *options, *point, cwd=tmp_path, DPO_CACHE_DIR=str(cache))
    assert trained.returncode == 0, trained.stderr
    [alone] = (tmp_path / "runs").iterdir()
    workers.assert_equal(runs(whole[0])["F"], RunDirectory(alone))


def test_ctrl_c_saves_and_says_how_to_go_on(shared: Path, tmp_path: Path) -> None:
    process = start(*arguments(shared), *GRID, "--plain", cwd=tmp_path)
    second = until_step(tmp_path, process, "B", 2)
    os.kill(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=HANG_SECONDS)
    assert process.returncode == 130, output
    assert "sweep dense: interrupted with 1 of 6 runs completed; everything is saved" in output
    assert output.splitlines()[-1].startswith(
        'continue: dpo sweep dense --grid "dpo.beta=[0.1,2,5]"'
    )
    assert "everything is saved" in output
    checkpoint, _ = second.newest_verified()
    assert checkpoint is not None
    assert sorted(runs(tmp_path)) == ["A", "B"]


def test_a_point_that_is_not_finite_does_not_keep_the_others(shared: Path, tmp_path: Path) -> None:
    grid = ("--grid", "train.learning_rate=[1e-4,1e20]")
    done = dpo(*arguments(shared), *grid, "--plain", cwd=tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "B failed: optimizer step" in done.stdout
    assert "note: B is not completed" in done.stdout
    assert runs(tmp_path)["A"].is_completed
