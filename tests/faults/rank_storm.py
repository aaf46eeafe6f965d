"""Repeated stops of one rank, and repeated kills of the launcher.

`make storm` runs it: python -m tests.faults.rank_storm --stops 50 --kills 20
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import tempfile
import time
from functools import partial
from pathlib import Path

from dpo_cli.run.directory import RunDirectory
from dpo_cli.run.events import EventReader, Stopped
from tests.faults.conftest import arguments
from tests.support import rank_faults, ranks, workers
from tests.support.cli import set_options
from tests.support.process_faults import descendants, is_gone, started, starts

_STEPS_PER_EPOCH = 6
_MAX_STEPS_PER_START = 4
_ORPHAN_SECONDS = 2.0  # on an idle machine, which a storm needs


def stops(shared: Path, root: Path, count: int, seed: int) -> None:
    """Stop a run of two ranks `count` times by a SIGTERM to one of them, and let it end.

    Args:
        shared: folder of the golden files.
        root: folder of the run and of an undisturbed run.
        count: number of stops; each comes while all ranks train.
        seed: seed of the random moments.

    Raises:
        AssertionError: ranks stopped at different steps or with different weights, or the run
            differs from the undisturbed one.
    """
    moments = random.Random(seed)
    epochs = -(-(count * _MAX_STEPS_PER_START + 2) // _STEPS_PER_EPOCH)
    keys = set_options({"train.accumulation_steps": 1})
    run, twin = (
        workers.new_run(root / name, [*arguments(shared, epochs), *keys])
        for name in ("run", "twin")
    )
    reached = 0
    for _ in range(count):
        notes = Path(tempfile.mkdtemp(dir=root))
        group = ranks.start(run, 2, partial(rank_faults.note, notes))
        workers.until_step(run, reached + moments.randint(1, _MAX_STEPS_PER_START - 2))
        time.sleep(moments.uniform(0, 0.03))
        os.kill(group.processes[moments.randrange(2)].pid or 0, signal.SIGTERM)
        assert group.wait() == [0, 0]
        *_, stopped = EventReader(run.events_path).read_new()
        assert isinstance(stopped, Stopped), "the run was over before its last stop: make it longer"
        one, other = rank_faults.ends_of(notes)
        assert one == other
        assert one[:2] == (stopped.optimizer_step, "terminated")
        assert stopped.optimizer_step > reached
        reached = stopped.optimizer_step
    for each in (run, twin):
        assert ranks.work(each, 2, seconds=600) == [0, 0]
    workers.assert_equal(run, twin)


def kill_launcher(
    run: RunDirectory,
    cwd: Path,
    seconds_after_start: float = 0.0,
    orphan_seconds: float = _ORPHAN_SECONDS,
) -> None:
    """Resume a run with two ranks, kill the launcher, and require that all processes end.

    Raises:
        AssertionError: a process outlives the launcher by `orphan_seconds`, or keeps the lock.
    """
    begun = sum(1 for _ in EventReader(run.events_path).read_new())
    with started("resume", str(run.path), "--plain", cwd=cwd) as launcher:
        workers.until(run, lambda events: starts(1)(events[begun:]))
        time.sleep(seconds_after_start)
        family = descendants(launcher.pid)
        assert len(family) >= 3, "agent and two ranks"
        launcher.kill()
        deadline = time.monotonic() + orphan_seconds
        # A process with many threads has ended before its last thread releases the lock.
        while not all(map(is_gone, family)) or run.holder():
            assert time.monotonic() < deadline, "a process is still alive"
            time.sleep(0.01)


def main() -> None:
    """Run the command line."""
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stops", type=int, default=50)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args()
    shared = Path(__file__).resolve().parents[3] / "shared"
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        os.environ["DPO_CACHE_DIR"] = str(root / "cache")
        began = time.monotonic()
        if options.stops:
            stops(shared, root, options.stops, options.seed)
            seconds = time.monotonic() - began
            print(
                f"{options.stops} stops, seed {options.seed}: equal, in {seconds:.0f} s", flush=True
            )
        began = time.monotonic()
        moments = random.Random(options.seed)
        keys = {"train.accumulation_steps": 1, "launch.nproc_per_node": 2}
        run = workers.new_run(root / "killed", [*arguments(shared, 1000), *set_options(keys)])
        for done in range(1, options.kills + 1):
            kill_launcher(run, root, moments.uniform(0, 3))
            print(f"kill {done} of {options.kills}: all processes ended", flush=True)
        seconds = time.monotonic() - began
        print(f"{options.kills} launchers killed, no orphan, in {seconds:.0f} s")


if __name__ == "__main__":
    main()
