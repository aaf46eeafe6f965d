"""Median step of the demo under several bounds of OpenMP's spin, alone and beside busy loops.

    python benchmarks/spin.py 1000 3000 10000 300000 --busy 0 1

300000 is libgomp's own default where threads are bound to no core. Run it on a quiet machine.
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

WARM_UP_STEPS = 2


def median_step_seconds(spins: int, busy_loops: int) -> float:
    """Train the demo for three epochs with the default number of threads."""
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
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("spins", type=int, nargs="+")
    parser.add_argument("--busy", type=int, nargs="+", default=[0, 1])
    options = parser.parse_args()
    for busy_loops in options.busy:
        for spins in options.spins:
            seconds = median_step_seconds(spins, busy_loops)
            print(f"{busy_loops} busy loops, {spins} spins: {seconds:.3f} s a step", flush=True)


if __name__ == "__main__":
    main()
