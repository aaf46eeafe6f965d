"""Median step time of the demo for several spin counts of OpenMP, alone and beside busy loops.

    python benchmarks/spin.py 1000 3000 10000 300000 --busy 0 1
    python benchmarks/spin.py 1000 --busy-per-core 0 2 --rounds 3 --most 4

300000 is libgomp's default for threads that are bound to no core. The settings run in turn in each
round, because the speed of a machine changes by the minute; the result is the median of the rounds.
--most N fails if a step beside busy loops takes more than N times as long as alone. Beside two
loops per core, three times as long is a fair share. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from dpo_cli.compute.threads import usable_cores

WARM_UP_STEPS = 2


def median_step_seconds(spins: int, busy_loops: int) -> float:
    """Train the demo for three epochs beside busy loops, with the default number of threads."""
    loops = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(busy_loops)
    ]
    environment = {**os.environ, "GOMP_SPINCOUNT": str(spins)}
    environment.pop("OMP_NUM_THREADS", None)
    command = [
        sys.executable,
        "-m",
        "dpo_cli",
        "train",
        "demo",
        "--set",
        "train.epochs=3",
        "--quiet",
    ]
    try:
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)
            [events] = Path(folder).glob("runs/*/events.jsonl")
            rows = [json.loads(line) for line in events.read_text().splitlines()]
    finally:
        for loop in loops:
            loop.kill()
    seconds = [row["seconds"] for row in rows if row["event"] == "StepDone"]
    return statistics.median(seconds[WARM_UP_STEPS:])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("spins", type=int, nargs="+", help="values of GOMP_SPINCOUNT")
    parser.add_argument("--busy", type=int, nargs="+", default=[0, 1], help="numbers of busy loops")
    parser.add_argument("--busy-per-core", type=int, nargs="+", help="the same per core")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--most", type=float, metavar="N", help="largest accepted slowdown")
    options = parser.parse_args()
    cores = usable_cores()
    per_core = options.busy_per_core
    loops = options.busy if per_core is None else [cores * number for number in per_core]
    settings = [(busy_loops, spins) for busy_loops in loops for spins in options.spins]
    seconds: dict[tuple[int, int], list[float]] = {setting: [] for setting in settings}
    for _ in range(options.rounds):
        for busy_loops, spins in settings:
            found = median_step_seconds(spins, busy_loops)
            seconds[busy_loops, spins].append(found)
            print(f"{busy_loops} busy loops, {spins} spins: {found:.3f} s per step", flush=True)
    medians = {setting: statistics.median(found) for setting, found in seconds.items()}
    worst = 0.0
    for (busy_loops, spins), found in medians.items():
        times = found / medians.get((0, spins), found)
        worst = max(worst, times)
        print(f"{busy_loops} busy loops, {spins} spins: {found:.3f} s, {times:.1f} times alone")
    if options.most is not None and worst > options.most:
        sys.exit(
            f"a step took {worst:.1f} times as long as alone; at most {options.most:g} expected"
        )


if __name__ == "__main__":
    main()
