"""Faults of one rank among several: stopped, killed, hung, wrong, out of memory or disk."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from dpo_cli.run.directory import RunDirectory
from dpo_cli.run.events import Alert, Event, EventReader, Failed, RankEnded, Resumed, Stopped
from dpo_cli.run.lookup import find_runs
from tests.faults import rank_storm
from tests.faults.conftest import arguments
from tests.support import data_faults, rank_faults, ranks, worker_faults, workers
from tests.support.cli import DPO, HANG_SECONDS, Run, run_in, set_options
from tests.support.process_faults import (
    held,
    hold_at,
    is_gone,
    limit_files,
    mounting,
    started,
    steps,
)
from tests.support.run_content import only
from tests.support.small_runs import golden_run


def new_run(shared: Path, root: Path, **changes: Any) -> RunDirectory:
    """Create a run with dropout and one micro-batch per rank and step; `dpo resume` uses two."""
    keys = {"train.accumulation_steps": 1, "launch.nproc_per_node": 2, **changes}
    return workers.new_run(root, arguments(shared) + set_options(keys))


def events(run: RunDirectory) -> list[Event]:
    return list(EventReader(run.events_path).read_new())


def on(rank: int, arm: Any, *arguments: Any) -> ranks.Arm:
    """Return an arm for one rank only."""
    return partial(rank_faults.only_on, rank, partial(arm, *arguments))


@pytest.fixture(scope="session")
def whole_pair(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """Complete run of two ranks without a fault; read only."""
    run = new_run(shared, tmp_path_factory.mktemp("whole-pair"))
    assert ranks.work(run, 2) == [0, 0]
    return run


@pytest.fixture(scope="session")
def stopped_pair(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """Run stopped after 3 optimizer steps by a SIGTERM to the second rank alone."""
    run = new_run(shared, tmp_path_factory.mktemp("stopped-pair"))
    stop = on(1, rank_faults.send_before, 3, signal.SIGTERM)
    assert ranks.work(
        run, 2, partial(rank_faults.each, (stop, partial(rank_faults.note, run.path)))
    ) == [0, 0]
    return run


@pytest.fixture
def pair(stopped_pair: RunDirectory, tmp_path: Path) -> RunDirectory:
    """Copy of `stopped_pair`, to be damaged and resumed."""
    place = tmp_path / "runs" / stopped_pair.name
    return RunDirectory(Path(shutil.copytree(stopped_pair.path, place)))


def assert_goes_on_and_ends_equal(run: RunDirectory, whole: RunDirectory, size: int = 2) -> None:
    assert not run.is_completed
    assert ranks.work(run, size) == [0] * size
    workers.assert_equal(run, whole)


# --- stops and resumes ----------------------------------------------------------------------------


def test_a_sigterm_to_one_rank_stops_all_at_the_same_step(
    stopped_pair: RunDirectory, whole_pair: RunDirectory, pair: RunDirectory
) -> None:
    ends = rank_faults.ends_of(stopped_pair.path)
    assert [end[:2] for end in ends] == [(3, "terminated")] * 2
    assert len({weights for *_, weights in ends}) == 1
    stopped = only(events(stopped_pair), Stopped)
    assert (stopped.optimizer_step, stopped.reason) == (3, "terminated")
    checkpoint, _ = stopped_pair.newest_verified()
    assert checkpoint is not None
    assert checkpoint.optimizer_step == 3
    assert_goes_on_and_ends_equal(pair, whole_pair)


def test_stops_at_any_time_end_at_the_same_step(shared: Path, tmp_path: Path) -> None:
    """Five stops; `make storm` does 50."""
    rank_storm.stops(shared, tmp_path, 5, seed=0)


def test_three_ranks_stopped_and_killed_end_equal(shared: Path, tmp_path: Path) -> None:
    whole, run = (new_run(shared, tmp_path / name) for name in ("whole", "run"))
    assert ranks.work(whole, 3) == [0, 0, 0]
    assert ranks.work(run, 3, on(2, rank_faults.send_before, 3, signal.SIGTERM)) == [0, 0, 0]
    assert only(events(run), Stopped).optimizer_step == 3
    group = ranks.start(run, 3)
    workers.until_step(run, 5)
    group.kill()
    assert_goes_on_and_ends_equal(run, whole, 3)


def test_forgotten_random_numbers_are_noticed(whole_pair: RunDirectory, pair: RunDirectory) -> None:
    """Negative control: forget the random numbers of the second rank."""
    assert ranks.work(pair, 2, on(1, worker_faults.forget, "random numbers")) == [0, 0]
    with pytest.raises(AssertionError):
        workers.assert_equal(pair, whole_pair)


# --- other numbers of ranks -----------------------------------------------------------------------


def test_one_two_three_and_one_rank_see_the_same_batches(shared: Path, tmp_path: Path) -> None:
    def run(name: str) -> RunDirectory:
        keys = {
            "train.epochs": 2,
            "train.batch_size": 1,
            "train.global_batch_size": 6,
            "eval.fraction": 0.0,
        }
        return workers.new_run(tmp_path / name, golden_run(shared, "seed", False, **keys))

    whole, moving = run("whole"), run("moving")
    assert ranks.work(whole, 1, partial(rank_faults.note, whole.path)) == [0]
    for size, step in ((1, 2), (2, 5), (3, 7), (1, 99)):
        note = partial(rank_faults.note, moving.path)
        stop = on(size - 1, rank_faults.send_before, step, signal.SIGTERM)
        codes = ranks.work(moving, size, partial(rank_faults.each, (note, stop)))
        assert codes == ([0] * size if size > 1 or step == 99 else [143])
    steps = rank_faults.pairs_of(whole.path)
    assert len(steps) == 10
    assert rank_faults.pairs_of(moving.path) == steps
    assert Run(moving).losses == pytest.approx(Run(whole).losses, abs=1e-6, rel=0)
    assert [e.optimizer_step for e in events(moving) if isinstance(e, Resumed)] == [2, 5, 7]
    told = [e for e in events(moving) if isinstance(e, Alert) and e.code == "other-environment"]
    assert [re.search(r"ranks \d -> \d", alert.message)[0] for alert in told] == [  # type: ignore[index]
        "ranks 1 -> 2",
        "ranks 2 -> 3",
        "ranks 3 -> 1",
    ]
    assert {alert.remedy for alert in told} == {
        "Training continues with the same batches; results may differ in the last bits."
    }


def test_too_many_ranks_are_refused(pair: RunDirectory, whole_pair: RunDirectory) -> None:
    assert ranks.work(pair, 3) == [0, 0, 0]
    failed = only(events(pair), Failed)
    assert "an optimizer step of this run has 2 micro-batches, too few for 3" in failed.message
    assert failed.remedy.endswith("launch.nproc_per_node = 2")
    assert_goes_on_and_ends_equal(pair, whole_pair)


# --- numbers, memory, disk, inputs, bugs ----------------------------------------------------------


def test_a_loss_that_is_not_finite_on_one_rank_stops_all(shared: Path, tmp_path: Path) -> None:
    """The fault is in the second of two micro-batches; the resumed run is without it."""
    run, whole = (
        new_run(shared, tmp_path / name, **{"train.accumulation_steps": 2})
        for name in ("run", "whole")
    )
    assert ranks.work(run, 2, on(1, data_faults.not_finite, (2,), "nan")) == [0, 0]
    failed = only(events(run), Failed)
    assert failed.message.startswith("optimizer step 2: the loss is not a finite number")
    facts = json.loads((run.path / "non_finite/step-00000002/global_batch.json").read_text())
    guilty = [
        micro_batch["lines"]
        for micro_batch in facts["micro_batches"]
        if str(micro_batch["loss"]) == "nan"
    ]
    assert len(guilty) == 1
    assert re.match(rf"lines? {guilty[0][0]}\b.* of ", failed.details[0])
    assert ranks.work(whole, 2) == [0, 0]
    assert_goes_on_and_ends_equal(run, whole)


def test_a_gradient_that_is_not_finite_on_one_rank_is_skipped_by_all(
    shared: Path, tmp_path: Path
) -> None:
    run = new_run(shared, tmp_path, **{"train.nan_policy": "skip"})
    fault = on(1, data_faults.not_finite, (2, 4), "gradient")
    note = partial(rank_faults.note, run.path)
    assert ranks.work(run, 2, partial(rank_faults.each, (fault, note))) == [0, 0]
    assert [step.optimizer_step for step in Run(run).steps if step.is_skipped] == [2, 4]
    (step, stop, weights), other = rank_faults.ends_of(run.path)
    assert (step, stop, weights) == (len(Run(run).steps), None, other[2])


def test_weights_that_differ_are_noticed_before_they_are_saved(
    pair: RunDirectory, whole_pair: RunDirectory
) -> None:
    """One bit of one weight differs on one rank."""
    states = sorted(path.name for path in pair.checkpoints_path.iterdir())
    assert ranks.work(pair, 2, on(1, rank_faults.flip_a_bit_before, 4)) == [0, 0]
    failed = only(events(pair), Failed)
    assert "the weights of these ranks differ from those of the main rank" in failed.message
    assert failed.details[0].startswith("rank 1 on ")
    assert sorted(path.name for path in pair.checkpoints_path.iterdir()) == states
    assert_goes_on_and_ends_equal(pair, whole_pair)


def test_a_rank_out_of_memory_is_reported(pair: RunDirectory, whole_pair: RunDirectory) -> None:
    assert ranks.work(pair, 2, on(1, rank_faults.out_of_memory_before, 5)) == [0, 0]
    failed = only(events(pair), Failed)
    assert re.match(r"rank 1 on \S+: out of memory: no more", failed.message)
    assert "train.activation_checkpointing" in failed.remedy
    assert_goes_on_and_ends_equal(pair, whole_pair)


def test_a_bug_on_one_rank_is_in_its_error_file(
    pair: RunDirectory, whole_pair: RunDirectory, tmp_path: Path
) -> None:
    fault = on(1, rank_faults.raise_before, 5, KeyError("a bug"))
    files = partial(rank_faults.with_error_file, tmp_path)
    assert ranks.work(pair, 2, partial(rank_faults.each, (fault, files))) == [1, 1]
    first, second = (
        json.loads((tmp_path / f"error-{rank}.json").read_text())["message"]["message"]
        for rank in (0, 1)
    )
    assert second == "KeyError: 'a bug'"
    assert re.match(r"rank 0 waited \d+ s for .*: rank 1 on \S+ is stopped or gone", first)
    assert_goes_on_and_ends_equal(pair, whole_pair)


def test_a_full_disk_of_the_main_rank_ends_all(
    pair: RunDirectory, whole_pair: RunDirectory
) -> None:
    assert ranks.work(pair, 2, on(0, limit_files, 1_500_000)) == [0, 0]
    failed = only(events(pair), Failed)
    assert (failed.exit_code, "no space left" in failed.message) == (75, True)
    assert_goes_on_and_ends_equal(pair, whole_pair)


@pytest.mark.parametrize("what", ["missing", "different"])
def test_an_input_that_one_machine_does_not_have(
    shared: Path, tmp_path: Path, pair: RunDirectory, whole_pair: RunDirectory, what: str
) -> None:
    data = tmp_path / "theirs.jsonl"
    if what == "different":
        lines = (shared / "golden/data/train27.jsonl").read_text().splitlines(keepends=True)
        data.write_text("".join(lines[:-1]))
    assert ranks.work(pair, 2, on(1, rank_faults.elsewhere, data)) == [0, 0]
    failed = only(events(pair), Failed)
    if what == "missing":
        assert failed.message.startswith("rank 1 on elsewhere: ")
        assert str(data) in failed.message
    else:
        assert failed.message == "the machines have different inputs"
        assert failed.details == ("rank 1: data.data_path differs from that of rank 0",)
    assert_goes_on_and_ends_equal(pair, whole_pair)


# --- through dpo itself ---------------------------------------------------------------------------


def ranks_of(launcher: subprocess.Popen[bytes]) -> list[int]:
    """Return the process ids of the ranks, by rank."""
    [agent] = children(launcher.pid)
    by_rank = {}
    for pid in children(agent):
        words = Path(f"/proc/{pid}/environ").read_text().split("\0")
        by_rank[next(word for word in words if word.startswith("RANK="))] = pid
    return [by_rank[rank] for rank in sorted(by_rank)]


def children(pid: int) -> list[int]:
    return [
        int(child)
        for task in Path(f"/proc/{pid}/task").iterdir()
        for child in (task / "children").read_text().split()
    ]


def output_of(launcher: subprocess.Popen[bytes]) -> str:
    output, _ = launcher.communicate(timeout=HANG_SECONDS)
    return output.decode()


def assert_gone(pids: list[int], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not all(map(is_gone, pids)):
        assert time.monotonic() < deadline, "still running"
        time.sleep(0.01)


def test_a_killed_rank_is_named_and_all_end(
    pair: RunDirectory, whole_pair: RunDirectory, tmp_path: Path
) -> None:
    with started("resume", pair.name, "--plain", cwd=tmp_path, changes=hold_at(5)) as launcher:
        with held(pair, steps(5)):
            pids = ranks_of(launcher)
            os.kill(pids[1], signal.SIGKILL)
        output = output_of(launcher)
    assert launcher.returncode == 1, output
    assert "error: rank 1 died of SIGKILL" in output
    assert f"help: Continue with: dpo resume {pair.name}" in output
    assert_gone(pids, seconds=0)
    assert_goes_on_and_ends_equal(pair, whole_pair)


def test_a_stopped_rank_is_named(
    pair: RunDirectory, whole_pair: RunDirectory, tmp_path: Path
) -> None:
    # Also the start must fit into this time: on a busy machine one rank imports long after another.
    options = set_options({"launch.timeout_seconds": 40})
    with started(
        "resume", pair.name, "--plain", *options, cwd=tmp_path, changes=hold_at(5, rank=1)
    ) as launcher:
        workers.until(pair, steps(5))
        pids = ranks_of(launcher)
        output = output_of(launcher)
    assert launcher.returncode == 1, output
    assert re.search(r"rank 0 waited \d+ s for .*: rank 1 on \S+ is stopped or gone", output)
    assert_gone(pids, seconds=0)
    assert_goes_on_and_ends_equal(pair, whole_pair)


def test_all_ranks_die_with_the_launcher(
    pair: RunDirectory, whole_pair: RunDirectory, tmp_path: Path
) -> None:
    """One kill; `make storm` does 20."""
    rank_storm.kill_launcher(pair, tmp_path, orphan_seconds=HANG_SECONDS)
    assert_goes_on_and_ends_equal(pair, whole_pair)


def test_all_ranks_restart_after_one_was_killed(
    pair: RunDirectory, whole_pair: RunDirectory, tmp_path: Path
) -> None:
    options = set_options({"launch.max_restarts": 1})
    with started(
        "resume", pair.name, "--plain", *options, cwd=tmp_path, changes=hold_at(5)
    ) as launcher:
        with held(pair, steps(5)):
            os.kill(ranks_of(launcher)[1], signal.SIGKILL)
        output = output_of(launcher)
    assert launcher.returncode == 0, output
    assert "warning: rank 1 died of SIGKILL" in output
    assert "restart 1 of 1" in output
    assert next(event.rank for event in events(pair) if isinstance(event, RankEnded)) == 1
    workers.assert_equal(pair, whole_pair)


def test_a_full_disk_under_two_ranks_ends_with_75(
    pair: RunDirectory, whole_pair: RunDirectory, tmp_path: Path
) -> None:
    """The file system has room for half a checkpoint more."""
    sizes = [file.stat().st_size for file in pair.path.rglob("*") if file.is_file()]
    script = """
        mount -t tmpfs -o size=$1 none full || exit 99
        cp -a runs full/
        cd full
        "${@:2}"; echo "code $?"
        cp -a runs/. ../then
    """
    (tmp_path / "full").mkdir()
    size = sum(sizes) + max(sizes) * 3 // 2
    command = mounting(script, str(size), *DPO, "resume", pair.name, "--plain")
    result = run_in(tmp_path, command)
    assert "code 75" in result.stdout, result.stdout + result.stderr
    assert "error: no space left to write in" in result.stderr
    assert "Traceback" not in result.stderr
    [then] = find_runs(tmp_path / "then")
    assert_goes_on_and_ends_equal(then, whole_pair)
