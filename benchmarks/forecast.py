"""Compare the time and memory that `dpo check` forecasts with those of the run.

    python benchmarks/forecast.py ../shared/checkpoints/full_sft_512.pth \\
        ../shared/tokenizer/minimind2 ../shared/data/dpo_en_zh_400.jsonl \\
        --moe ../shared/checkpoints/full_sft_256_moe.pth \\
        --judged ../shared/data/dpo_judged_train.jsonl

Measures four profiles: dense weights and experts, on the pairs and on the judged pairs, one of them
with activation checkpointing, another with the padded layout. Each profile is checked and then
trained in separate processes, from an empty cache. Time is the wall-clock time of the whole command
with start-up. Memory is the peak of the process, or of the tensors on a GPU. Exits with code 1 if a
forecast is off by more than `MAX_ERROR`. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from inputs import make_parser

MAX_ERROR = {"seconds": 0.20, "bytes": 0.15}
"""Largest accepted error of a forecast, as a share of the measured value."""


def profiles(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Return the settings of each profile, without those that all profiles share."""
    dense, moe = options.model_weights, options.moe
    pairs, judged = options.data, options.judged
    return {
        "dense, pairs": {"model.weights": dense, "data.data_path": pairs},
        "dense, judged, activations made twice": {
            "model.weights": dense,
            "data.data_path": judged,
            "train.activation_checkpointing": True,
            "train.accumulation_steps": 2,
        },
        "experts, judged": {"model.weights": moe, "data.data_path": judged},
        "experts, pairs, padded": {
            "model.weights": moe,
            "data.data_path": pairs,
            "data.max_seq_len": 512,
            "train.layout": "padded",
        },
    }


def measure(options: argparse.Namespace, settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Check and train one profile; return forecast and measured values."""
    rows = folder / "pairs.jsonl"
    with Path(settings["data.data_path"]).open(encoding="utf-8") as lines:
        rows.write_text("".join(itertools.islice(lines, options.pairs)), encoding="utf-8")
    keys = {
        "model.tokenizer": options.tokenizer.resolve(),
        **settings,
        "model.weights": Path(settings["model.weights"]).resolve(),
        "data.data_path": rows,
        "dpo.beta": 5.0,
        "train.learning_rate": 1e-6,
        "train.device": options.device,
        "eval.fraction": 0.1,
    }
    words = [f"{key}={str(v).lower() if isinstance(v, bool) else v}" for key, v in keys.items()]
    (folder / "my.toml").write_text("", encoding="utf-8")
    command = ["my.toml", *(word for pair in words for word in ("--set", pair))]
    printed, check_seconds, _ = run(["check", *command, "--json"], folder)
    report = json.loads(printed)
    forecast = report["facts"].get("forecast")
    if forecast is None:
        raise SystemExit(f"dpo check made no forecast: {report['findings']}")
    _, seconds, process_bytes = run(["train", *command, "--plain"], folder)
    [stream] = (folder / "runs").glob("*/events.jsonl")
    events = [json.loads(line) for line in stream.read_text(encoding="utf-8").splitlines()]
    device_bytes = max(event.get("device_bytes", 0) for event in events)
    on_gpu = device_bytes > 0
    forecast_bytes = forecast["device_bytes" if on_gpu else "process_bytes"]
    actual_bytes = device_bytes if on_gpu else process_bytes
    return {
        "check_seconds": round(check_seconds, 1),
        "foretold_seconds": round(forecast["seconds"], 1),
        "seconds": round(seconds, 1),
        "seconds_off": round(forecast["seconds"] / seconds - 1, 3),
        "foretold_mb": round(forecast_bytes / 1e6),
        "mb": round(actual_bytes / 1e6),
        "bytes_off": round(forecast_bytes / actual_bytes - 1, 3),
        "forecast": forecast,
        "step_seconds": [e["seconds"] for e in events if e["event"] == "StepDone"],
        "evaluation_seconds": [e["seconds"] for e in events if e["event"] == "Evaluated"],
    }


def run(arguments: list[str], folder: Path) -> tuple[str, float, int]:
    """Run `dpo`; return output, seconds, and peak bytes of the process and its children."""
    environment = {
        **os.environ,
        "DPO_CACHE_DIR": str(folder / "cache"),
        "PYTHONPATH": str(Path(__file__).resolve().parents[1]),
    }
    began = time.perf_counter()
    with (folder / "output").open("w+", encoding="utf-8") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "dpo_cli", *arguments],
            cwd=folder,
            env=environment,
            stdout=output,
            stderr=subprocess.DEVNULL,
        )
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        printed = output.read()
    if process.returncode:
        raise SystemExit(f"dpo {arguments[0]} failed:\n{printed}")
    return printed, seconds, usage.ru_maxrss * 1024


def main() -> None:
    """Run the command line."""
    parser = make_parser(__doc__)
    parser.add_argument("--moe", type=Path, required=True, help="weights of a mixture of experts")
    parser.add_argument("--judged", type=Path, required=True, help="judged pairs")
    parser.add_argument("--pairs", type=int, default=64, help="rows to use of each file")
    parser.add_argument("--device", default="auto")
    parser.add_argument(
        "--only", action="append", help="measure only this profile; may be repeated"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to FILE")
    options = parser.parse_args()
    results = {}
    for name, settings in profiles(options).items():
        if options.only and name not in options.only:
            continue
        with tempfile.TemporaryDirectory() as folder:
            results[name] = measure(options, settings, Path(folder))
        print(f"{name}: {results[name]['seconds']:.0f} s", file=sys.stderr)
    report = {
        "date": datetime.date.today().isoformat(),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "arguments": sys.argv[1:],
        "profiles": results,
    }
    show(results)
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    failures = [
        abs(result[f"{quantity}_off"]) > limit
        for result in results.values()
        for quantity, limit in MAX_ERROR.items()
    ]
    sys.exit(any(failures))


def show(results: dict[str, dict[str, Any]]) -> None:
    """Print the figures as a table in Markdown."""
    print("| | check, s | forecast, s | run, s | error | forecast, MB | run, MB | error |")
    print("|---|---|---|---|---|---|---|---|")
    for name, row in results.items():
        print(
            f"| {name} | {row['check_seconds']} | {row['foretold_seconds']} | {row['seconds']}"
            f" | {row['seconds_off']:+.0%} | {row['foretold_mb']:,} | {row['mb']:,}"
            f" | {row['bytes_off']:+.0%} |"
        )


if __name__ == "__main__":
    main()
