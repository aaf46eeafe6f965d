"""Seconds and memory of the commands that read long runs and large files of pairs.

    dpo demo
    python benchmarks/growth.py runs/demo-... ../shared/data/dpo_judged_train.jsonl \\
        --json benchmarks/growth.json

The long runs are copies of a finished run, whose training steps are repeated to 100,000. The pairs
are those of a file in MiniMind's format, repeated, with a number before each text. Each command
runs in its own process; memory is the peak of the resident set.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rows import numbered_lines

REPOSITORY = Path(__file__).resolve().parents[1]
DPO = [sys.executable, "-P", "-m", "dpo_cli"]


def lengthen(run: Path, copy: Path, steps: int) -> None:
    """Copy a finished run, with `steps` training steps in its event stream."""
    shutil.copytree(run, copy)
    lines = (run / "events.jsonl").read_text(encoding="utf-8").splitlines()
    events = [json.loads(line) for line in lines]
    done = [event for event in events if event["event"] == "StepDone"]
    factor = steps / len(done)
    with (copy / "events.jsonl").open("w", encoding="utf-8") as file:
        count = 0
        for event in events:
            if event["event"] == "StepDone":
                until = round(event["step"] * factor)
                for number in range(count + 1, until + 1):
                    changed = {**event, "step": number, "optimizer_step": number}
                    file.write(json.dumps(changed) + "\n")
                count = until
                continue
            for name in ("step", "optimizer_step"):
                if event.get(name):
                    event[name] = round(event[name] * factor)
            file.write(json.dumps(event) + "\n")


def measure(*arguments: str, cwd: Path) -> dict[str, Any]:
    """Run `dpo` with these arguments, and return its seconds and its memory.

    Raises:
        SystemExit: the command fails.
    """
    began = time.perf_counter()
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen([*DPO, *arguments], stdout=output, stderr=output, cwd=cwd)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - began
        if status:
            output.seek(0)
            sys.exit(f"dpo {' '.join(arguments)}:\n{output.read().decode(errors='replace')}")
    return {
        "seconds": round(seconds, 2),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 2),
        "memory_mb": round(usage.ru_maxrss / 1e3),
    }


def long_runs(run: Path, folder: Path, steps: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Measure the commands that read whole runs."""
    for name in ("first", "second"):
        lengthen(run, folder / "runs" / name, steps)
    for words in (
        ("runs",),
        ("show", "first"),
        ("compare", "first", "second", "--width", "160", "--height", "50"),
        ("report", "first", "--out", "report.html"),
        ("plot", "first", "--out", "plot.svg"),
    ):
        yield f"dpo {' '.join(words)}", measure(*words, cwd=folder)


def many_rows(data: Path, folder: Path, rows: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Measure `dpo data` on a large file, with and without its tokens in the cache."""
    path = folder / "pairs.jsonl"
    with path.open("w", encoding="utf-8") as file:
        file.writelines(f"{line}\n" for line in numbered_lines(data, rows))
    profile = folder / "large.toml"
    demo = (REPOSITORY / "profiles/demo.toml").read_text(encoding="utf-8")
    profile.write_text(demo.replace("../demo/", f"{REPOSITORY}/demo/"), encoding="utf-8")
    words = ["data", str(profile), "--set", f"data.data_path={path}", "--line", str(rows)]
    for state in ("first time", "in the cache"):
        yield f"dpo data --line {rows}, {state}", measure(*words, cwd=folder)


def main() -> None:
    """Run all commands and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="directory of a finished run")
    parser.add_argument("data", type=Path, help="pairs in MiniMind's format")
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--rows", type=int, default=300_000)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to FILE")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    figures = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["DPO_CACHE_DIR"] = str(folder / "cache")
        parts = (
            long_runs(options.run, folder, options.steps),
            many_rows(options.data, folder, options.rows),
        )
        for command, figure in itertools.chain(*parts):
            figures[command] = figure
            print(f"{command}: {figure}", flush=True)
    if options.json:
        report = {
            "date": datetime.date.today().isoformat(),
            "cores": os.cpu_count(),
            "steps": options.steps,
            "rows": options.rows,
            "figures": figures,
        }
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
