"""What a sweep of six runs takes, against six separate runs of the same points.

    python benchmarks/sweep.py ../shared/checkpoints/full_sft_512.pth \\
        ../shared/tokenizer/minimind2 ../shared/data/dpo_en_zh_400.jsonl --json FILE

Three ways to train the same six points (three betas by two learning rates, a tenth of the pairs
held out), by wall clock from the first command to the end of the last:

- separate: six `dpo train`, each with an empty cache directory, as on six machines, or for somebody
  who keeps none: rows are encoded and the reference's log-probs computed six times;
- cached: six `dpo train` that share one cache, empty before the first;
- sweep: `dpo sweep`, with a cache that is empty before it.

They take turns point by point where they can: of each round the separate and the cached runs of a
point follow each other, and the sweep comes first or last by turns, so that a machine that grows
slower hits all. The reference is computed along the first epoch alone, so that the gain falls with
`--epochs`. All states must come out equal to the bit, which is checked.
"""

from __future__ import annotations

import datetime
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from inputs import make_parser

from dpo_cli.files import sha256_file
from dpo_cli.run.lookup import find_runs
from dpo_cli.run.store import RunDirectory

BETAS, RATES = (0.1, 2, 5), (1e-6, 1e-5)
_STAMP = len("20261123-120000-ab12")
DPO = [sys.executable, "-m", "dpo_cli"]


class Round:
    """One round of all three, in a folder of its own."""

    def __init__(self, folder: Path, options: Any, rows: Path) -> None:
        self.folder, self._number = folder, 0
        profile = {
            "model.checkpoint": options.checkpoint.resolve(),
            "model.tokenizer": options.tokenizer.resolve(),
            "data.data_path": rows,
            "data.max_seq_len": options.max_seq_len,
            "train.epochs": options.epochs,
            "eval.fraction": 0.1,
        }
        settings = [f"{key}={value}" for key, value in profile.items()] + options.settings
        self._settings = [word for setting in settings for word in ("--set", setting)]

    def _dpo(self, runs: str, cache: str, *words: str) -> float:
        """Wall-clock seconds of a command."""
        # A fresh cache would try how to multiply, and a stopwatch errs: other bits, another speed.
        (self.folder / cache).mkdir(exist_ok=True)
        for found in [*self.folder.glob("cache-*/matmul-*")][:1]:
            (self.folder / cache / found.name).write_bytes(found.read_bytes())
        began = time.perf_counter()
        subprocess.run(
            [*DPO, *words, *self._settings, "--quiet", "--runs-dir", str(self.folder / runs)],
            check=True,
            stdout=subprocess.DEVNULL,
            env={**os.environ, "DPO_CACHE_DIR": str(self.folder / cache)},
        )
        return time.perf_counter() - began

    def train(self, runs: str, cache: str, beta: float, rate: float) -> float:
        """One separate run; its seconds."""
        point = ("--set", f"dpo.beta={beta}", "--set", f"train.learning_rate={rate}")
        return self._dpo(runs, cache, "train", "dense", *point)

    def sweep(self) -> float:
        """The sweep; its seconds."""
        grid = (f"dpo.beta={list(BETAS)}", f"train.learning_rate={list(RATES)}")
        words = [word for each in grid for word in ("--grid", each)]
        return self._dpo("sweep", "cache-sweep", "sweep", "dense", *words)

    def require_same_states(self) -> None:
        """Refuse runs of a point that do not end in the same weights, moments and all, to the bit.

        Raises:
            SystemExit: naming them; they stay where they are.
        """
        ways = [self._runs(name) for name in ("separate", "cached", "sweep")]
        for runs in zip(*ways, strict=True):
            first = _state(runs[0])
            others = [run for run in runs[1:] if _state(run) != first]
            if others:
                differing = "".join(f"\n  {run.path}" for run in [runs[0], *others])
                raise SystemExit(f"these runs of a point do not end in the same state:{differing}")

    def _runs(self, way: str) -> list[RunDirectory]:
        """Those of six points, in their order."""
        return sorted(find_runs(self.folder / way), key=lambda run: run.name[-_STAMP:])


def _state(run: RunDirectory) -> dict[str, str]:
    files = sorted(run.generations_path.glob("step-*/*"))
    return {file.name: sha256_file(file) for file in files if file.name != "manifest.json"}


def measure(folder: Path, options: Any, rows: Path, *, sweep_first: bool) -> dict[str, float]:
    """Seconds of each of the three in one round."""
    this = Round(folder, options, rows)
    seconds = {"separate": 0.0, "cached": 0.0}
    if sweep_first:
        seconds["sweep"] = this.sweep()
    for number, (beta, rate) in enumerate(itertools.product(BETAS, RATES)):
        seconds["separate"] += this.train("separate", f"cache-{number}", beta, rate)
        seconds["cached"] += this.train("cached", "cache-shared", beta, rate)
    if not sweep_first:
        seconds["sweep"] = this.sweep()
    this.require_same_states()
    return seconds


def main() -> None:
    """The command line."""
    parser = make_parser(__doc__)
    parser.add_argument("--rows", type=int, default=400)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--max-seq-len", type=int, default=512)
    parser.add_argument("--set", action="append", default=[], dest="settings")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    rounds = []
    for number in range(options.rounds):
        folder = Path(tempfile.mkdtemp(dir=".")).resolve()
        rows = folder / "rows.jsonl"
        lines = options.data.read_text(encoding="utf-8").splitlines(keepends=True)
        rows.write_text("".join(lines[: options.rows]), encoding="utf-8")
        rounds.append(measure(folder, options, rows, sweep_first=number % 2 == 1))
        shutil.rmtree(folder)
    print("| | seconds, median | of separate |")
    print("|---|---|---|")
    median = {name: statistics.median(its[name] for its in rounds) for name in rounds[0]}
    for name in ("separate", "cached", "sweep"):
        share = statistics.median(its[name] / its["separate"] for its in rounds)
        print(f"| {name} | {median[name]:.1f} | {share:.2f} |")
    if options.json:
        report = {
            "date": datetime.date.today().isoformat(),
            "arguments": sys.argv[1:],
            "rounds": rounds,
        }
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
