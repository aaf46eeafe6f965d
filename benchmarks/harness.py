"""An exported directory in lm-evaluation-harness, and the same figure by `dpo eval`.

    dpo export RUN --format hf --to exported
    python benchmarks/harness.py exported ../shared/data/dpo_judged_test.jsonl \\
        --harness .venv-bench/bin/python --json benchmarks/harness.json

Each pair is a question with two answers, and the model chooses the likelier one: the harness by its
own code, from texts; `dpo eval` with a sum over the response. Both shares must be the same.
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

_LONGEST_TOKENS = 8192
"""No answer is cut: the harness cuts none."""


def by_harness(options: argparse.Namespace, folder: Path) -> dict[str, float]:
    """What the harness says, in its own environment; nothing is fetched."""
    report = folder / "report.json"
    script = Path(__file__).with_name("harness_task.py")
    subprocess.run(
        [str(options.harness), str(script), str(options.model), str(options.data), str(report)],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"},
        check=True,
    )
    figures: dict[str, float] = json.loads(report.read_text(encoding="utf-8"))
    return figures


def by_dpo(options: argparse.Namespace) -> dict[str, float]:
    """What `dpo eval` says of all pairs."""
    keys = {
        "data.max_seq_len": _LONGEST_TOKENS,
        "dpo.reduction": "sum",
        "train.dtype": "float32",
        "train.device": "cpu",
    }
    words = [word for key, value in keys.items() for word in ("--set", f"{key}={value}")]
    command = ["eval", str(options.model), "--data", str(options.data), "--json", *words]
    said = subprocess.run(
        [sys.executable, "-m", "dpo_cli", *command],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])},
        stdout=subprocess.PIPE,
        check=True,
        encoding="utf-8",
    ).stdout
    figures: dict[str, float] = json.loads(said)["models"][0]["groups"]["all"]
    return figures


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="a Hugging Face directory")
    parser.add_argument("data", type=Path, help="pairs in MiniMind's format")
    parser.add_argument("--harness", type=Path, required=True, metavar="PYTHON")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        theirs = by_harness(options, Path(folder))
    ours = by_dpo(options)
    report = {
        "date": datetime.date.today().isoformat(),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "arguments": sys.argv[1:],
        "harness": theirs,
        "dpo eval": {"pairs": ours["pairs"], "likelier": ours["logps/accuracies"]},
    }
    print(f"lm-evaluation-harness: {theirs['acc']:.4f} of {theirs['pairs']:.0f} pairs")
    print(f"dpo eval:              {ours['logps/accuracies']:.4f} of {ours['pairs']:.0f} pairs")
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
