"""Pairs per second of a real run by number of ranks.

    python benchmarks/ranks.py ../shared/checkpoints/full_sft_512.pth \\
        ../shared/tokenizer/minimind2 ../shared/data/dpo_en_zh_400.jsonl --ranks 1 2 --json FILE

Each rank uses one thread, or one GPU. An optimizer step has the same pairs for any number of ranks.
Efficiency is the speed of N ranks divided by N times the speed of one. "Seconds beside forwards" is
the time of a step without the forward and backward passes of the slowest rank: the all-reduce of
the gradients, clipping, and the update. The figures come from the event streams of the runs, from
the third optimizer step on. The reference's log-probs are read from the cache.
"""

from __future__ import annotations

import datetime
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from inputs import make_parser

from dpo_cli.run.events import StepDone, history
from dpo_cli.run.lookup import find_runs

WARM_UP_STEPS = 2


def measure(options: Any, ranks: int, rows: Path, cache: str) -> dict[str, float]:
    """Train one run, and return its figures."""
    with tempfile.TemporaryDirectory() as runs:
        profile = {
            "model.weights": options.model_weights.resolve(),
            "model.tokenizer": options.tokenizer.resolve(),
            "data.data_path": rows,
            "data.max_seq_len": options.max_seq_len,
            "train.epochs": 1,
            "train.batch_size": 4,
            "train.global_batch_size": options.global_batch_size,
            "train.save_interval": 10**6,
        }
        words = [w for key, value in profile.items() for w in ("--set", f"{key}={value}")]
        subprocess.run(
            [
                *(sys.executable, "-m", "dpo_cli", "train", "dense", "--plain", "--quiet"),
                *("--runs-dir", runs, "--nproc", str(ranks), *words),
            ],
            check=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "DPO_CACHE_DIR": cache},
        )
        [run] = find_runs(Path(runs))
        events = list(history(run.events_path))
    steps = [event for event in events if isinstance(event, StepDone)][WARM_UP_STEPS:]
    # Seconds of the slowest rank. A run of one rank has no seconds per rank.
    computed = [max(step.rank_seconds, default=step.seconds) for step in steps]
    return {
        "ranks": ranks,
        "optimizer_steps": len(steps),
        "pairs_a_second": sum(step.pairs for step in steps) / sum(step.seconds for step in steps),
        "seconds_beside_forwards": statistics.median(
            step.seconds - slowest for step, slowest in zip(steps, computed, strict=True)
        ),
        "imbalance": statistics.median(
            max(step.rank_seconds) / statistics.fmean(step.rank_seconds) if ranks > 1 else 1.0
            for step in steps
        ),
    }


def main() -> None:
    """Run the command line."""
    parser = make_parser(__doc__)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rows", type=int, default=96)
    parser.add_argument("--max-seq-len", type=int, default=512)
    parser.add_argument("--global-batch-size", type=int, default=16)
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows.jsonl"
        lines = options.data.read_text(encoding="utf-8").splitlines(keepends=True)
        rows.write_text("".join(lines[: options.rows]), encoding="utf-8")
        figures = []
        for ranks in options.ranks:
            cache = str(Path(folder) / f"cache-{ranks}")
            measure(options, ranks, rows, cache)  # fills the cache
            figures.append(measure(options, ranks, rows, cache))
    print("| ranks | pairs/s | efficiency | seconds beside forwards | slowest rank / mean |")
    print("|---|---|---|---|---|")
    for row in figures:
        speed = row["pairs_a_second"] / row["ranks"]
        row["efficiency"] = speed / (figures[0]["pairs_a_second"] / figures[0]["ranks"])
        print(
            f"| {row['ranks']} | {row['pairs_a_second']:.2f} | {row['efficiency']:.0%}"
            f" | {row['seconds_beside_forwards']:.3f} | {row['imbalance']:.2f} |"
        )
    if options.json:
        report = {
            "date": datetime.date.today().isoformat(),
            "arguments": sys.argv[1:],
            "figures": figures,
        }
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
