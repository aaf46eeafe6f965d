"""Share of the time of a real run that goes into saving checkpoints.

    python benchmarks/saving.py ../shared/checkpoints/full_sft_512.pth \\
        ../shared/tokenizer/minimind2 ../shared/data/dpo_en_zh_400.jsonl --minutes 6

Runs `dpo train` with the default `save_min_seconds` and a save due at every step, which is the
worst case. The figures come from the event stream of the run.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from inputs import make_parser

from dpo_cli.run.events import Saved, StepDone, Stopped, WorkerStarted, history
from dpo_cli.run.lookup import find_runs

DPO = [sys.executable, "-m", "dpo_cli"]


def measure(
    model_weights: Path, tokenizer: Path, data: Path, minutes: float, settings: list[str]
) -> dict[str, object]:
    """Train for some minutes, stop the run, and read its event stream."""
    with tempfile.TemporaryDirectory(dir=".") as runs:
        profile = {
            "model.weights": model_weights.resolve(),
            "model.tokenizer": tokenizer.resolve(),
            "data.data_path": data.resolve(),
            "data.max_seq_len": 512,
            "train.epochs": 1000,
            "train.save_interval": 1,
        }
        words = [w for key, value in profile.items() for w in ("--set", f"{key}={value}")]
        words += [w for setting in settings for w in ("--set", setting)]
        trainer = subprocess.Popen(
            [*DPO, "train", "dense", "--plain", "--quiet", "--runs-dir", runs, *words]
        )
        while not (found := find_runs(Path(runs))) or not any(
            isinstance(event, StepDone) for event in history(found[0].events_path)
        ):
            if trainer.poll() is not None:
                raise SystemExit("the run ended before its first step")
            time.sleep(1)
        time.sleep(60 * minutes)
        subprocess.run([*DPO, "stop", "--runs-dir", runs], check=True, stdout=subprocess.DEVNULL)
        trainer.wait()
        events = list(history(found[0].events_path))
    steps = [event for event in events if isinstance(event, StepDone)]
    saves = [event for event in events if isinstance(event, Saved)]
    [stopped] = [event for event in events if isinstance(event, Stopped)]
    [started] = [event for event in events if isinstance(event, WorkerStarted)]
    seconds = stopped.elapsed_seconds - (steps[0].elapsed_seconds - steps[0].seconds)
    saving = sum(save.seconds for save in saves)
    return {
        "weights": model_weights.name,
        "device": started.device_name or started.device,
        "seconds_trained": round(seconds, 1),
        "optimizer_steps": len(steps),
        "saves": len(saves),
        "state_mb": round(saves[-1].size_bytes / 1e6),
        "seconds_a_save": [round(save.seconds, 2) for save in saves],
        "median_seconds_a_save": round(statistics.median(save.seconds for save in saves), 2),
        "share_of_time": round(saving / seconds, 4),
    }


def main() -> None:
    """Run the command line."""
    parser = make_parser(__doc__)
    parser.add_argument("--minutes", type=float, default=6.0, help="minutes to train (default: 6)")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="settings",
        metavar="KEY=VALUE",
        help="as in dpo train",
    )
    options = parser.parse_args()
    result = measure(
        options.model_weights, options.tokenizer, options.data, options.minutes, options.settings
    )
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
