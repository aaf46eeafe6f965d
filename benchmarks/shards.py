"""Measure the peak memory of each rank that shares a model, on a CPU.

    python benchmarks/shards.py --json FILE

Trains a MiniMind of 768 x `--layers` (16 have 104 M parameters) with random weights for two steps
through `dpo train`: as one process, and as 2 and 4 ranks with launch.strategy = "shard". While they
run, the peak of each rank's process is read from /proc. The part that all numbers of ranks have
alike (libraries, activations) cancels in differences: from N to 2 N ranks, weights, gradients and
moments lose 16 / N - 16 / (2 N) bytes per parameter. The main rank is left out of them, because it
has the whole model at the start and at a save.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from memory import DEMO, write_weights

_STATE_BYTES = 16
"""Bytes per parameter of a weight, its gradient and two moments."""


def peaks(folder: Path, ranks: int) -> list[int]:
    """Train two steps on `ranks` ranks; return the peak of each rank's process in bytes."""
    strategy = "shard" if ranks > 1 else "replicate"
    mark = f"DPO_CACHE_DIR={folder / f'cache-{ranks}'}"
    words = [
        *(f"model.weights={folder / 'full_sft_768.pth'}", f"model.tokenizer={DEMO / 'tokenizer'}"),
        *(f"data.data_path={folder / 'pairs.jsonl'}", "data.max_seq_len=64", "train.epochs=1"),
        *("train.batch_size=1", "train.global_batch_size=4", "train.device=cpu"),
        *("train.threads=1", f"launch.nproc_per_node={ranks}", f"launch.strategy={strategy}"),
    ]
    options = [word for setting in words for word in ("--set", setting)]
    command = [sys.executable, "-m", "dpo_cli", "train", "dense", "--plain", "--quiet", *options]
    name, _, value = mark.partition("=")
    trained = subprocess.Popen(command, env={**os.environ, name: value}, cwd=folder)
    found: dict[int, int] = {}
    while trained.poll() is None:
        for rank, peak in _ranks(mark):
            found[rank] = max(peak, found.get(rank, 0))
        time.sleep(0.05)
    assert trained.returncode == 0
    return [found[rank] for rank in sorted(found)]


def _ranks(mark: str) -> list[tuple[int, int]]:
    """Return rank and peak of each process with `mark` in its environment that trains."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_text().split("\0")
            environment = (process / "environ").read_text().split("\0")
            status = (process / "status").read_text().splitlines()
        except (OSError, UnicodeDecodeError):  # it has ended, or is not ours
            continue
        if mark in environment and "dpo_cli.training.worker" in words:
            values = dict(word.partition("=")[::2] for word in environment)
            peak = [int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:")]
            found += [(int(values.get("RANK", 0)), size) for size in peak]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    results: dict[str, Any] = {"peaks": {}}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = (DEMO / "pairs.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)[:8]
        (folder / "pairs.jsonl").write_text("".join(rows), encoding="utf-8")
        parameters = results["parameters"] = write_weights(
            folder / "full_sft_768.pth", options.layers
        )
        others: dict[int, float] = {}
        for ranks in (1, 2, 4):
            found = results["peaks"][ranks] = peaks(folder, ranks)
            own = found[1:] or found
            others[ranks] = sum(own) / len(own)
            print(f"{ranks} ranks: {', '.join(f'{peak / 1e9:.2f}' for peak in found)} GB")
        for fewer, more in ((1, 2), (2, 4)):
            expected = _STATE_BYTES * parameters * (1 / fewer - 1 / more)
            saved = others[fewer] - others[more]
            results[f"{fewer} to {more}"] = {"saved": saved, "expected": expected}
            print(
                f"from {fewer} to {more} ranks: {saved / 1e9:.2f} GB less per rank,"
                f" {expected / 1e9:.2f} expected, {saved / expected - 1:+.1%}"
            )
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
