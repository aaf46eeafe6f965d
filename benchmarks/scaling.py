"""Seconds per pair by sequence length and by micro-batch size, for the plain loop and `dpo`.

    python benchmarks/scaling.py ../shared/checkpoints/full_sft_512.pth \\
        ../shared/tokenizer/minimind2 ../shared/data/dpo_en_zh_400.jsonl --json scaling.json

Each figure is the median of a few processes of `benchmarks/speed.py`. `benchmarks/plot.py` plots
the result. `benchmarks/tokens.py` measures start-up and memory by number of rows.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from inputs import make_parser

LENGTHS = (256, 512, 1024, 2048, 4096)
BATCH_SIZES = (1, 2, 4, 8, 16)
VARIANTS = ("plain script", "dpo, cold", "dpo, warm")


def main() -> None:
    """Run the command line."""
    parser = make_parser(__doc__)
    parser.add_argument("--pairs", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", type=Path, required=True, metavar="FILE")
    options = parser.parse_args()
    report = {
        "date": datetime.date.today().isoformat(),
        "arguments": sys.argv[1:],
        "by_length": {n: measure(options, max_seq_len=n, batch_size=4) for n in LENGTHS},
        "by_batch_size": {n: measure(options, max_seq_len=1024, batch_size=n) for n in BATCH_SIZES},
    }
    options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    for name in ("by_length", "by_batch_size"):
        print(f"\n| {name} | {' | '.join(VARIANTS)} | peak, MB: {' | '.join(VARIANTS)} |")
        print("|---" * (1 + 2 * len(VARIANTS)) + "|")
        for number, row in report[name].items():  # type: ignore[attr-defined]
            seconds = [f"{row[v]['seconds_a_pair']:.3f}" for v in VARIANTS]
            peaks = [f"{row[v]['peak_mb']:,}" for v in VARIANTS]
            print(f"| {number} | {' | '.join(seconds + peaks)} |")


def measure(options: argparse.Namespace, **settings: int) -> dict[str, Any]:
    """Measure the variants in turn at one point."""
    command = [sys.executable, str(Path(__file__).with_name("speed.py"))]
    command += [str(options.model_weights), str(options.tokenizer), str(options.data)]
    command += ["--pairs", str(options.pairs)]
    for name, value in settings.items():
        command += [f"--{name.replace('_', '-')}", str(value)]
    runs: dict[str, list[dict[str, Any]]] = {variant: [] for variant in VARIANTS}
    for _ in range(options.rounds):
        for variant in VARIANTS:
            done = subprocess.run(
                [*command, "--variant", variant],
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                check=True,
            )
            runs[variant].append(json.loads(done.stdout))
            print(settings, variant, f"{runs[variant][-1]['seconds']:.1f} s", file=sys.stderr)
    return {
        variant: {
            "seconds_a_pair": statistics.median(run["seconds"] / run["pairs"] for run in results),
            "peak_mb": round(max(run["peak_bytes"] for run in results) / 1e6),
        }
        for variant, results in runs.items()
    }


if __name__ == "__main__":
    main()
