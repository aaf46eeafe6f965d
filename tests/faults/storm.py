"""Kill storm: a run that is killed at random times ends like an undisturbed one.

`make storm` runs it with 100 kills of workers, 50 of each kind of child's parent in its first
moments, and 100 of launchers while they start a run, alone and with two ranks:
python -m tests.faults.storm --kills 100 --orphans 50 --starts 100
"""

from __future__ import annotations

import argparse
import os
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.faults.conftest import SAVE_STEPS, arguments
from tests.support import first_moments, process_faults, workers
from tests.support.cli import set_options
from tests.support.tracking_streams import new_run

_MAX_STEPS_PER_START = 7
_STEPS_PER_EPOCH = 6


def storm(
    shared: Path,
    root: Path,
    kills: int,
    seed: int,
    on_kill: Callable[[int, int], object] = lambda done, kills: None,
) -> None:
    """Kill a run's worker `kills` times, let it end, and compare it with an uninterrupted run.

    Args:
        shared: folder of the golden files.
        root: folder of the two runs.
        kills: number of SIGKILLs; each hits a running worker.
        seed: seed of the random moments.
        on_kill: called after each kill with the kills so far and all kills.

    Raises:
        AssertionError: the runs differ, or more was lost than the steps since the last save.
    """
    moments = random.Random(seed)
    # Each start does half of the maximal number of steps on average, and loses one or two of them.
    epochs = -(-(kills * (_MAX_STEPS_PER_START // 2 + 1) + 40) // _STEPS_PER_EPOCH)
    run = workers.new_run(root / "storm", arguments(shared, epochs))
    for done in range(1, kills + 1):
        process = workers.start(run)
        if moments.random() < 0.8:  # otherwise the kill may hit the loading
            step = workers.until_steps(run, process, moments.randrange(_MAX_STEPS_PER_START))
            time.sleep(moments.uniform(0, 1.5) * step.seconds)
        else:
            time.sleep(moments.uniform(0, 0.4))
        assert process.exitcode is None, "the run was over before its last kill: make it longer"
        workers.kill(process)
        on_kill(done, kills)
    assert workers.work(run, seconds=600) == 0
    twin = workers.new_run(root / "twin", arguments(shared, epochs))
    assert workers.work(twin, seconds=600) == 0
    workers.assert_equal(run, twin)
    workers.assert_little_lost(run, kills, epochs * _STEPS_PER_EPOCH, SAVE_STEPS)


def orphans(root: Path, kills: int, seed: int) -> float:
    """Kill the parent of each kind of child, `kills` times, in the child's first moments.

    Returns:
        The longest time that a child has outlived its parent, in seconds.

    Raises:
        AssertionError: a child does not end.
    """
    moments = random.Random(seed)
    run = new_run(root / "orphans", use_tensorboard=True)
    return max(
        first_moments.orphan(kind, run, moments.choice((0, moments.uniform(0, 0.5))))
        for kind in first_moments.KINDS
        for _ in range(kills)
    )


def starts(
    shared: Path, root: Path, kills: int, seed: int, ranks: int, orphan_seconds: float = 2.0
) -> None:
    """Kill the launcher of a run `kills` times while it starts the run; then let it end.

    Args:
        shared, root, seed: see `storm`.
        kills: number of SIGKILLs; in half of them the descendants are paused during the kill.
        ranks: number of processes that train the run.
        orphan_seconds: time for the descendants to end, on an idle machine.

    Raises:
        AssertionError: a descendant does not end or keeps the lock, or the run differs from an
            undisturbed one.
    """
    moments = random.Random(seed)
    epochs = 12 + kills // 4
    keys = set_options({"train.accumulation_steps": 1, "launch.nproc_per_node": ranks})
    run, twin = (
        workers.new_run(root / f"{name}-{ranks}", [*arguments(shared, epochs), *keys])
        for name in ("starts", "twin")
    )
    for _ in range(kills):
        with process_faults.started("resume", str(run.path), "--plain", cwd=root) as launcher:
            time.sleep(moments.uniform(0.2, 6))
            assert launcher.poll() is None, "the run was over before its last kill: make it longer"
            family = process_faults.kill_parent(launcher, hold_children=moments.random() < 0.5)
        deadline = time.monotonic() + orphan_seconds
        while not all(map(process_faults.is_gone, family)) or run.holder():
            assert time.monotonic() < deadline, "a process outlives the launcher"
            time.sleep(0.005)
    for each in (run, twin):
        with process_faults.started("resume", str(each.path), "--plain", cwd=root) as launcher:
            launcher.communicate()
            assert launcher.returncode == 0
    workers.assert_equal(run, twin)


def main() -> None:
    """Run the command line."""
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--orphans", type=int, default=0)
    parser.add_argument("--starts", type=int, default=0)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args()
    from rich.progress import track

    shared = Path(__file__).resolve().parents[3] / "shared"
    bar = iter(track(range(options.kills), description=f"kills, seed {options.seed}"))
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        os.environ["DPO_CACHE_DIR"] = str(root / "cache")
        if options.orphans:
            longest = orphans(root, options.orphans, options.seed)
            print(f"{options.orphans} orphans of each kind: gone after {longest:.2f} s at most")
        for ranks, share in ((1, 0.8), (2, 0.2)) if options.starts else ():
            starts(shared, root, kills := round(share * options.starts), options.seed, ranks)
            print(f"{kills} launchers of {ranks} ranks killed while they start: no orphan, equal")
        began = time.monotonic()
        storm(shared, root, options.kills, options.seed, lambda *_: next(bar, None))
        seconds = time.monotonic() - began
    next(bar, None)
    print(f"{options.kills} kills, seed {options.seed}: equal, in {seconds:.0f} s")


if __name__ == "__main__":
    main()
