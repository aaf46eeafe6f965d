"""Time of a sweep of six runs, compared with six separate runs of the same points.

    python benchmarks/sweep.py ../shared/checkpoints/full_sft_512.pth \\
        ../shared/tokenizer/minimind2 ../shared/data/dpo_en_zh_400.jsonl --json FILE

Three ways train the same six points (three betas by two learning rates, a tenth of the pairs held
out). Times are wall-clock times from the first command to the end of the last:

- separate: six `dpo train`, each with an empty cache, as on six machines: rows are encoded and the
  reference's log-probs are computed six times;
- cached: six `dpo train` that share one cache, empty before the first;
- sweep: `dpo sweep`, with an empty cache.

The ways run in turn, point by point, each time another one first, so that a machine that slows down
affects all of them. While the others train, SIGSTOP pauses the sweep at the start of its next run;
the pause is not counted. The reference is computed during the first epoch only, so the gain falls
with `--epochs`. The script checks that the runs of a point end in bit-identical states.
"""

from __future__ import annotations

import contextlib
import datetime
import itertools
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

from inputs import make_parser

from dpo_cli.files import sha256_file
from dpo_cli.run.directory import RunDirectory
from dpo_cli.run.lookup import find_runs

BETAS, RATES = (0.1, 2, 5), (1e-6, 1e-5)
POINTS = tuple(itertools.product(BETAS, RATES))
_POLL_SECONDS = 0.02
_STAMP = len("20261123-120000-ab12")
DPO = [sys.executable, "-m", "dpo_cli"]


class Round:
    """One round of all three ways, in its own folder."""

    def __init__(self, folder: Path, options: Any, rows: Path) -> None:
        self.folder = folder
        profile = {
            "model.weights": options.model_weights.resolve(),
            "model.tokenizer": options.tokenizer.resolve(),
            "data.data_path": rows,
            "data.max_seq_len": options.max_seq_len,
            "train.epochs": options.epochs,
            "eval.fraction": 0.1,
        }
        settings = [f"{key}={value}" for key, value in profile.items()] + options.settings
        self._settings = [word for setting in settings for word in ("--set", setting)]

    def _start(self, runs: str, cache: str, *words: str) -> subprocess.Popen[bytes]:
        (self.folder / cache).mkdir(exist_ok=True)
        return subprocess.Popen(
            [*DPO, *words, *self._settings, "--quiet", "--runs-dir", str(self.folder / runs)],
            stdout=subprocess.DEVNULL,
            env={**os.environ, "DPO_CACHE_DIR": str(self.folder / cache)},
        )

    def train(self, runs: str, cache: str, point: tuple[float, float]) -> float:
        """Train one separate run; return the wall-clock seconds."""
        began = time.perf_counter()
        settings = (f"dpo.beta={point[0]}", f"train.learning_rate={point[1]}")
        words = [word for each in settings for word in ("--set", each)]
        _wait_for(self._start(runs, cache, "train", "dense", *words))
        return time.perf_counter() - began

    def sweep(self) -> Generator[float]:
        """Run the sweep, paused at each yield; yield the wall-clock seconds of each point.

        The first figure includes the plan and the imports, the last one the comparison.
        """
        began = time.perf_counter()
        grid = (f"dpo.beta={list(BETAS)}", f"train.learning_rate={list(RATES)}")
        words = [word for each in grid for word in ("--grid", each)]
        process = self._start("sweep", "cache-sweep", "sweep", "dense", *words)
        try:
            for count in range(2, len(POINTS) + 1):
                while len(find_runs(self.folder / "sweep")) < count:
                    if process.poll() is not None:
                        raise SystemExit(f"exit code {process.returncode} after {count - 1} runs")
                    time.sleep(_POLL_SECONDS)
                paused = _pause(process.pid)
                yield time.perf_counter() - began
                began = time.perf_counter()
                _signal(paused, signal.SIGCONT)
            _wait_for(process)
        finally:  # if another way failed, the sweep is still paused
            if process.poll() is None:
                _signal(_process_tree(process.pid), signal.SIGKILL)
        yield time.perf_counter() - began

    def require_same_states(self) -> None:
        """Require that the runs of each point end in bit-identical states.

        Raises:
            SystemExit: states differ; the message names the runs, which are kept.
        """
        ways = [self._runs(name) for name in ("separate", "cached", "sweep")]
        for runs in zip(*ways, strict=True):
            first = _state(runs[0])
            others = [run for run in runs[1:] if _state(run) != first]
            if others:
                differing = "".join(f"\n  {run.path}" for run in [runs[0], *others])
                raise SystemExit(f"these runs of a point do not end in the same state:{differing}")

    def _runs(self, way: str) -> list[RunDirectory]:
        """Return the runs of one way in the order of the points."""
        return sorted(find_runs(self.folder / way), key=lambda run: run.name[-_STAMP:])


def _wait_for(process: subprocess.Popen[bytes]) -> None:
    if process.wait():
        raise SystemExit(f"exit code {process.returncode} of {process.args!r}")


def _pause(pid: int) -> set[int]:
    """Stop a process and its descendants, which have their own sessions; return their ids."""
    paused: set[int] = set()
    while new := _process_tree(pid) - paused:
        _signal(new, signal.SIGSTOP)
        paused |= new
        time.sleep(_POLL_SECONDS)  # a process may have started a child just before the signal
    return paused


def _process_tree(pid: int) -> set[int]:
    children: set[int] = set()
    with contextlib.suppress(OSError):  # the process has ended
        for listed in Path(f"/proc/{pid}/task").glob("*/children"):
            children.update(map(int, listed.read_text(encoding="ascii").split()))
    return {pid}.union(*map(_process_tree, children))


def _signal(processes: set[int], number: signal.Signals) -> None:
    for pid in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _state(run: RunDirectory) -> dict[str, str]:
    files = sorted(run.checkpoints_path.glob("step-*/*"))
    return {file.name: sha256_file(file) for file in files if file.name != "manifest.json"}


def measure(folder: Path, options: Any, rows: Path, first: int) -> dict[str, list[float]]:
    """Return the seconds of each way in one round, point by point."""
    this_round = Round(folder, options, rows)
    with contextlib.closing(this_round.sweep()) as sweep:
        ways: dict[str, Callable[[int], float]] = {
            "separate": lambda n: this_round.train("separate", f"cache-{n}", POINTS[n]),
            "cached": lambda n: this_round.train("cached", "cache-shared", POINTS[n]),
            "sweep": lambda n: next(sweep),
        }
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        for number in range(len(POINTS)):
            for turn in range(len(ways)):
                way = [*ways][(first + number + turn) % len(ways)]
                seconds[way].append(ways[way](number))
            last = (f"{way} {each[-1]:.1f} s" for way, each in seconds.items())
            print(f"point {number + 1}:", *last)
    this_round.require_same_states()
    return seconds


def main() -> None:
    """Run the command line."""
    parser = make_parser(__doc__)
    parser.add_argument("--rows", type=int, default=400)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--max-seq-len", type=int, default=512)
    parser.add_argument("--set", action="append", default=[], dest="settings", metavar="KEY=VALUE")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))  # so that `finally` blocks run
    rounds = []
    for number in range(options.rounds):
        folder = Path(tempfile.mkdtemp(dir=".")).resolve()
        rows = folder / "rows.jsonl"
        lines = options.data.read_text(encoding="utf-8").splitlines(keepends=True)
        rows.write_text("".join(lines[: options.rows]), encoding="utf-8")
        rounds.append(measure(folder, options, rows, first=number))
        shutil.rmtree(folder)
    print("| | seconds, median | share of separate |")
    print("|---|---|---|")
    for way in rounds[0]:
        seconds = statistics.median(sum(figures[way]) for figures in rounds)
        share = statistics.median(
            sum(figures[way]) / sum(figures["separate"]) for figures in rounds
        )
        print(f"| {way} | {seconds:.1f} | {share:.2f} |")
    if options.json:
        report = {
            "date": datetime.date.today().isoformat(),
            "arguments": sys.argv[1:],
            "rounds": rounds,
        }
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
