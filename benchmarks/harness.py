"""Preference accuracy of an exported model, by lm-evaluation-harness and by `dpo eval`.

    dpo export RUN --format hf --dtype float32 --to exported
    python benchmarks/harness.py exported ../shared/data/dpo_judged_test.jsonl \\
        --harness .venv-bench/bin/python --json benchmarks/harness.json

Each pair is a question with two answers, and the model chooses the more likely one. The harness
computes this from texts with its own code; `dpo eval` sums the log-probs of the response. Both
accuracies must be equal.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

_MAX_SEQ_LEN = 8192
"""Long enough to truncate no answer, because the harness truncates none."""


def evaluate_with_harness(options: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Evaluate with lm-evaluation-harness in its own environment, offline."""
    report = folder / "report.json"
    script = Path(__file__).with_name("harness_task.py")
    subprocess.run(
        [str(options.harness), str(script), str(options.model), str(options.data), str(report)],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"},
        check=True,
    )
    figures: dict[str, float] = json.loads(report.read_text(encoding="utf-8"))
    return figures


def evaluate_with_dpo(options: argparse.Namespace) -> dict[str, float]:
    """Evaluate with `dpo eval`; return the metrics of all pairs."""
    keys = {
        "data.max_seq_len": _MAX_SEQ_LEN,
        "dpo.reduction": "sum",
        "train.dtype": "float32",
        "train.device": "cpu",
    }
    words = [word for key, value in keys.items() for word in ("--set", f"{key}={value}")]
    command = ["eval", str(options.model), "--data", str(options.data), "--json", *words]
    printed = subprocess.run(
        [sys.executable, "-m", "dpo_cli", *command],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])},
        stdout=subprocess.PIPE,
        check=True,
        encoding="utf-8",
    ).stdout
    figures: dict[str, float] = json.loads(printed)["models"][0]["groups"]["all"]
    return figures


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="a Hugging Face directory")
    parser.add_argument("data", type=Path, help="pairs in MiniMind's format")
    parser.add_argument(
        "--harness",
        type=Path,
        required=True,
        metavar="PYTHON",
        help="interpreter with lm-evaluation-harness",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to FILE")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        harness = evaluate_with_harness(options, Path(folder))
    dpo = evaluate_with_dpo(options)
    report = {
        "date": datetime.date.today().isoformat(),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "arguments": sys.argv[1:],
        "harness": harness,
        "dpo eval": {"pairs": dpo["pairs"], "likelier": dpo["logps/accuracies"]},
    }
    print(f"lm-evaluation-harness: {harness['acc']:.4f} of {harness['pairs']:.0f} pairs")
    print(f"dpo eval:              {dpo['logps/accuracies']:.4f} of {dpo['pairs']:.0f} pairs")
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
