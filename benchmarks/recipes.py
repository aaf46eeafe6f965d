"""Held-out metrics of recipes: a grid of reductions, betas and lr_sums.

    python benchmarks/recipes.py ../shared/checkpoints/full_sft_512.pth \\
        ../shared/tokenizer/minimind2 ../shared/data/dpo_judged_train.jsonl \\
        --held-out ../shared/data/dpo_judged_test.jsonl --runs-dir runs/recipes \\
        --json benchmarks/recipes.json

Trains one epoch of `dpo train` per point, from the same weights, on the same pairs in the same
order, and evaluates the same held-out pairs before and after. lr_sum is the sum of the learning
rates over the run; JSON files and names of points call it "reach". `--folds K` holds out the
prompts of the data instead, a Kth of them per run, and pools the figures of the K runs. Completed
runs in the runs directory are reused, so an interrupted benchmark continues.

    python benchmarks/recipes.py ../shared/checkpoints/full_sft_512.pth \\
        ../shared/tokenizer/minimind2 ../shared/data/dpo_judged_train.jsonl \\
        --held-out ../shared/data/dpo_judged_test.jsonl --small-data 5,20,60 \\
        --runs-dir runs/small --json benchmarks/recipes_small.json

The second command measures runs of few pairs at several learning rates, and adds the missing points
to the JSON file.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import math
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from inputs import make_parser
from small_data import RATES, measure_small_data, show_small_data

from dpo_cli.intervals import wilson_interval
from dpo_cli.learning_rate import LearningRate
from dpo_cli.run.directory import RunDirectory
from dpo_cli.run.events import Evaluated, Sampled, StepDone, history

LOSS_SETTINGS = (
    *(("mean", beta) for beta in (0.1, 2.0, 5.0, 10.0)),
    *(("sum", beta) for beta in (0.1, 0.15)),
)
LR_SUMS = (1e-3, 2e-4, 3e-5)
BATCH_SIZE = 4
LAST_LOSSES = 0.2
"""Share of the micro-batches, at the end of the epoch, over which `last_loss` is a mean."""
SHARES = ("rewards/accuracies", "logps/accuracies", "ref_logps/accuracies")
FIGURES = (*SHARES, "loss", "margin_per_token", "kl", "token_logps/chosen", "entropy")
LENGTHS = ("length/like length", "length/chosen longer", "length/rejected longer")


class Point(NamedTuple):
    """Recipe of the grid."""

    reduction: str
    beta: float
    lr_sum: float

    @classmethod
    def parse(cls, text: str) -> Point:
        """Parse a name such as mean-beta5-reach0.001."""
        reduction, beta, lr_sum = text.split("-", 2)
        return cls(reduction, float(beta.removeprefix("beta")), float(lr_sum.removeprefix("reach")))

    def __str__(self) -> str:
        return f"{self.reduction}-beta{self.beta:g}-reach{self.lr_sum:g}"


class Split(NamedTuple):
    """Rows to train on, and rows to evaluate on."""

    name: str
    training: Path
    held_out: Path
    rows: int


def splits(options: argparse.Namespace) -> Iterator[Split]:
    """Yield the first rows and the held-out file, or the folds; no prompt is in both parts."""
    lines = options.data.read_text(encoding="utf-8").splitlines(keepends=True)[: options.pairs]
    folder: Path = options.runs_dir / "data"
    folder.mkdir(parents=True, exist_ok=True)
    if not options.folds:
        training = folder / "training.jsonl"
        write_once(training, lines)
        yield Split("", training, options.held_out.resolve(), len(lines))
        return
    prompts = [json.dumps(json.loads(line)["chosen"][:-1]) for line in lines]
    numbers = {prompt: number for number, prompt in enumerate(dict.fromkeys(prompts))}
    for fold in range(options.folds):
        is_held_out = [numbers[prompt] % options.folds == fold for prompt in prompts]
        training, held_out = (folder / f"{part}-{fold}.jsonl" for part in ("training", "held_out"))
        rows = list(itertools.compress(lines, (not out for out in is_held_out)))
        write_once(training, rows)
        write_once(held_out, list(itertools.compress(lines, is_held_out)))
        yield Split(f"-fold{fold}", training, held_out.resolve(), len(rows))


def write_once(path: Path, lines: Sequence[str]) -> None:
    """Write a file unless it has these lines: another run may be reading it."""
    if not path.exists() or path.read_text(encoding="utf-8") != "".join(lines):
        path.write_text("".join(lines), encoding="utf-8")


def train(options: argparse.Namespace, point: Point, split: Split) -> RunDirectory:
    """Return the completed run of a point; train it if there is none."""
    name = f"{point}{split.name}"
    completed = [path.parent for path in options.runs_dir.glob(f"{name}-2*/COMPLETED")]
    if completed:
        return RunDirectory(completed[0])
    steps = math.ceil(split.rows / BATCH_SIZE)
    schedule = LearningRate("minimind2", 1.0, steps, 0)
    keys = {
        "model.weights": options.model_weights.resolve(),
        "model.tokenizer": options.tokenizer.resolve(),
        "data.data_path": split.training.resolve(),
        "data.max_seq_len": options.max_seq_len,
        "data.shuffle": "true",
        "dpo.reduction": point.reduction,
        "dpo.beta": point.beta,
        "train.epochs": 1,
        "train.batch_size": BATCH_SIZE,
        "train.learning_rate": point.lr_sum / sum(map(schedule.at, range(steps))),
        "eval.path": split.held_out,
        "eval.num_samples": options.samples,
    }
    profile = options.runs_dir / "recipe.toml"
    profile.write_text("", encoding="utf-8")
    words = [word for key, value in keys.items() for word in ("--set", f"{key}={value}")]
    command = ["train", str(profile), "--name", name, "--plain", "--quiet", *words]
    subprocess.run(
        [sys.executable, "-m", "dpo_cli", *command, "--runs-dir", str(options.runs_dir)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])},
        check=True,
    )
    [path] = options.runs_dir.glob(f"{name}-2*/COMPLETED")
    return RunDirectory(path.parent)


def figures(run: RunDirectory) -> dict[str, Any]:
    """Return lr_sum, last losses and held-out metrics of a run, before and after training."""
    events = list(history(run.events_path))
    steps = [event for event in events if isinstance(event, StepDone)]
    evaluated = [event for event in events if isinstance(event, Evaluated)]
    sampled = [event for event in events if isinstance(event, Sampled)]
    losses = [loss for step in steps for loss in step.losses]
    last = losses[-max(1, round(LAST_LOSSES * len(losses))) :]
    return {
        "steps": len(steps),
        "reach": sum(step.learning_rate for step in steps),
        "last_loss": sum(last) / len(last),
        "before": groups(evaluated[0]),
        "after": groups(evaluated[-1]),
        "answers": [
            {name: sample[name] for name in ("line", "policy", "reference")}
            for sample in (sampled[-1].samples if sampled else ())
        ],
    }


def groups(evaluated: Evaluated) -> dict[str, dict[str, float]]:
    """Return the figures of each group of pairs."""
    return {
        group: {name: found[name] for name in ("pairs", *FIGURES) if name in found}
        for group, found in evaluated.groups.items()
    }


def pool(parts: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, dict[str, float]]:
    """Pool the groups of several runs, each pair in one run; add intervals of the shares."""
    pooled: dict[str, dict[str, float]] = {}
    for group in dict.fromkeys(group for part in parts for group in part):
        found = [part[group] for part in parts if group in part]
        pairs = sum(each["pairs"] for each in found)
        pooled[group] = {"pairs": pairs}
        for name in FIGURES:
            mean = sum(each["pairs"] * each[name] for each in found) / pairs
            pooled[group][name] = mean
            if name in SHARES:
                low, high = wilson_interval(mean, int(pairs))
                pooled[group] |= {f"{name}/low": low, f"{name}/high": high}
    return pooled


def measure(options: argparse.Namespace, point: Point) -> dict[str, Any]:
    """Measure a recipe on all splits."""
    runs = []
    for split in splits(options):
        runs.append(figures(train(options, point, split)))
        after = runs[-1]["after"]["all"]
        print(
            f"{point}{split.name}: accuracy {after['rewards/accuracies']:.3f}, margin"
            f" {after['margin_per_token']:+.3f}, loss {after['loss']:.4f}",
            file=sys.stderr,
        )
    return {
        "reduction": point.reduction,
        "beta": point.beta,
        "reach": point.lr_sum,
        "steps": [run["steps"] for run in runs],
        "reach_seen": [run["reach"] for run in runs],
        "last_loss": sum(run["last_loss"] for run in runs) / len(runs),
        "before": pool([run["before"] for run in runs]),
        "after": pool([run["after"] for run in runs]),
        "answers": [answer for run in runs for answer in run["answers"]],
    }


def show(points: Sequence[Mapping[str, Any]]) -> None:
    """Print the figures as tables in Markdown."""

    def share(found: Mapping[str, float], name: str) -> str:
        return f"{found[name]:.3f} ({found[f'{name}/low']:.2f} to {found[f'{name}/high']:.2f})"

    print(
        "| reduction | beta | lr_sum | accuracy | like length | chosen longer | rejected longer |"
    )
    print("|---|---|---|---|---|---|---|")
    for point in points:
        shares = [share(point["after"][g], SHARES[0]) for g in ("all", *LENGTHS)]
        print(f"| {_recipe(point)} | {' | '.join(shares)} |")
    names = ("reduction", "beta", "lr_sum", "loss", "last in training", "margin/token", "KL")
    names += ("chosen, nats per token", "entropy", "preference accuracy")
    print(f"\n| {' | '.join(names)} |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for point in points:
        found = point["after"]["all"]
        print(
            f"| {_recipe(point)} | {found['loss']:.4f} | {point['last_loss']:.4f}"
            f" | {found['margin_per_token']:+.3f} | {found['kl']:+.3f}"
            f" | {found['token_logps/chosen']:.3f}"
            f" | {found['entropy']:.3f} | {share(found, SHARES[1])} |"
        )
    before = points[0]["before"]
    print("\nBefore training, by group, pairs and preference accuracy of each reduction:")
    for group, found in before.items():
        print(f"{group}: {found['pairs']:.0f}")
    for reduction in dict.fromkeys(point["reduction"] for point in points):
        point = next(point for point in points if point["reduction"] == reduction)
        print(reduction, *(share(point["before"][g], SHARES[2]) for g in ("all", *LENGTHS)))


def _recipe(point: Mapping[str, Any]) -> str:
    return f"{point['reduction']} | {point['beta']:g} | {point['reach']:g}"


def header() -> dict[str, Any]:
    """Return the first entries of a report: date, machine and arguments."""
    return {
        "date": datetime.date.today().isoformat(),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "arguments": sys.argv[1:],
    }


def numbers(kind: type) -> Callable[[str], list[Any]]:
    """Return a parser of comma-separated values."""
    return lambda text: [kind(each) for each in text.split(",")]


def main() -> None:
    """Run the command line."""
    parser = make_parser(__doc__)
    group = parser.add_mutually_exclusive_group(required=True)
    group.add_argument(
        "--held-out", type=Path, help="held-out pairs; their prompts must not be in the data"
    )
    group.add_argument("--folds", type=int, default=0, help="hold out a Kth of the prompts per run")
    parser.add_argument("--pairs", type=int, help="rows to use of the data (default: all)")
    parser.add_argument("--max-seq-len", type=int, default=448)
    parser.add_argument("--samples", type=int, default=2, help="held-out prompts to answer")
    parser.add_argument(
        "--only",
        action="append",
        metavar="POINT",
        type=Point.parse,
        help="measure this point instead of the grid, for example mean-beta5-reach0.001;"
        " may be repeated",
    )
    parser.add_argument("--runs-dir", type=Path, required=True, help="directory of the runs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to FILE")
    small = parser.add_argument_group("runs of few pairs")
    small.add_argument("--small-data", type=numbers(int), metavar="PAIRS,...")
    small.add_argument("--rates", type=numbers(float), metavar="RATE,...", default=RATES)
    small.add_argument("--losses", type=numbers(str), metavar="LOSS,...", default=["mean:5"])
    small.add_argument("--held-out-pairs", type=int, default=60)
    options = parser.parse_args()
    if options.small_data:
        show_small_data(measure_small_data(options, header()))
        return
    grid = [Point(*settings, lr_sum) for lr_sum in LR_SUMS for settings in LOSS_SETTINGS]
    points = [measure(options, point) for point in options.only or grid]
    report = {**header(), "points": points}
    show(points)
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
