"""Training with bfloat16 weights against float32 weights: losses, and what held-out pairs show.

    python benchmarks/weights_dtype.py PROFILE --set KEY=VALUE ... --json FILE

Trains a profile three times with the code of the training worker: weights and computation in
float32, float32 weights computed in bfloat16, and `model.weights_dtype = "bfloat16"`. The pairs and
their order are the same.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import sys
import tempfile
import time
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from dpo_cli.errors import ExitCode
from dpo_cli.profile.load import load_profile
from dpo_cli.profile.resolved import to_toml
from dpo_cli.run.directory import RunDirectory
from dpo_cli.run.events import Evaluated, StepDone, history
from dpo_cli.training import session

KINDS = {
    "float32": ["model.weights_dtype=float32", "train.dtype=float32"],
    "float32, computed in bfloat16": ["model.weights_dtype=float32", "train.dtype=bfloat16"],
    "bfloat16": ["model.weights_dtype=bfloat16", "train.dtype=auto"],
}
METRICS = {"accuracy": "rewards/accuracies", "margin_per_token": "margin_per_token", "loss": "loss"}


class NeverStopped:
    """Stop signal that is never set."""

    stop: str | None = None


def train(options: argparse.Namespace, folder: Path, settings: list[str]) -> dict[str, Any]:
    """Train one run; return its losses and its last evaluation."""
    profile = load_profile(options.profile, [*options.set, "train.device=cpu", *settings]).profile
    run = RunDirectory.create(folder, "run", to_toml(profile))
    began = time.monotonic()
    if session.train_run(run.path, NeverStopped()) is not ExitCode.DONE:
        raise SystemExit(f"the run failed: {run.path}")
    events = list(history(run.events_path))
    last = [event.metrics for event in events if isinstance(event, Evaluated)][-1]
    steps = [event for event in events if isinstance(event, StepDone)]
    return {
        "losses": [fmean(event.losses) for event in steps],
        "weights_moved": steps[-1].metrics["weights_moved"],
        "seconds": round(time.monotonic() - began),
        **{name: last[key] for name, key in METRICS.items()},
    }


def show(runs: dict[str, dict[str, Any]]) -> None:
    """Print the figures as a table in Markdown."""
    print("| weights | loss of steps: mean, largest difference | accuracy | margin/token | loss |")
    print("|---" * 5 + "|")
    expected = runs["float32"]["losses"]
    for name, run in runs.items():
        apart = [abs(loss - other) for loss, other in zip(run["losses"], expected, strict=True)]
        print(
            f"| {name} | {fmean(apart):.1e}, {max(apart):.1e} | {run['accuracy']:.3f} |"
            f" {run['margin_per_token']:+.5f} | {run['loss']:.5f} |"
        )


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("profile", type=Path)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to FILE")
    options = parser.parse_args()
    runs = {}
    for name, settings in KINDS.items():
        with tempfile.TemporaryDirectory() as folder:
            os.environ["DPO_CACHE_DIR"] = str(Path(folder, "cache"))
            runs[name] = train(options, Path(folder), settings)
        print(f"{name}: {runs[name]['seconds']} s", file=sys.stderr)
    show(runs)
    if options.json:
        report = {
            "date": datetime.date.today().isoformat(),
            "machine": f"{os.cpu_count()} cores, {platform.machine()}",
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "arguments": sys.argv[1:],
            "runs": runs,
        }
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
