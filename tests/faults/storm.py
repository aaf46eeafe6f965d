"""A kill storm: one run, killed at random times again and again, ends as one left in peace.

`make storm` runs it with 100 kills: python -m tests.faults.storm --kills 100
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
from tests.support import workers

_MOST_STEPS_A_LIFE = 7
_STEPS_AN_EPOCH = 6


def storm(
    shared: Path,
    root: Path,
    kills: int,
    seed: int,
    told: Callable[[int, int], object] = lambda done, kills: None,
) -> None:
    """Kill a run's worker `kills` times, let it end, and hold it against an uninterrupted twin.

    Args:
        shared: the golden files.
        root: where the two runs go.
        kills: SIGKILLs; each hits a worker that lives.
        seed: of the moments.
        told: after each kill, with how many there were and will be.

    Raises:
        AssertionError: they differ, or more was lost than the steps since the last save.
    """
    moments = random.Random(seed)
    # In a life it gets half of the most steps on, and loses one or two of them.
    epochs = -(-(kills * (_MOST_STEPS_A_LIFE // 2 + 1) + 40) // _STEPS_AN_EPOCH)
    run = workers.new_run(root / "storm", arguments(shared, epochs))
    for done in range(1, kills + 1):
        process = workers.start(run)
        if moments.random() < 0.8:  # else it may die while it still loads
            step = workers.until_steps(run, process, moments.randrange(_MOST_STEPS_A_LIFE))
            time.sleep(moments.uniform(0, 1.5) * step.seconds)
        else:
            time.sleep(moments.uniform(0, 0.4))
        assert process.exitcode is None, "the run was over before its last kill: make it longer"
        workers.kill(process)
        told(done, kills)
    assert workers.work(run, seconds=600) == 0
    twin = workers.new_run(root / "twin", arguments(shared, epochs))
    assert workers.work(twin, seconds=600) == 0
    workers.assert_equal(run, twin)
    workers.assert_little_lost(run, kills, epochs * _STEPS_AN_EPOCH, SAVE_STEPS)


def main() -> None:
    """The command line."""
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args()
    from rich.progress import track

    shared = Path(__file__).resolve().parents[3] / "shared"
    bar = iter(track(range(options.kills), description=f"kills, seed {options.seed}"))
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        storm(shared, Path(folder), options.kills, options.seed, lambda *_: next(bar, None))
        seconds = time.monotonic() - began
    next(bar, None)
    print(f"{options.kills} kills, seed {options.seed}: equal, in {seconds:.0f} s")


if __name__ == "__main__":
    main()
