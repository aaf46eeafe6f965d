"""What recipes come to on held-out pairs: a grid of reductions, betas and reaches.

    python benchmarks/recipes.py ../shared/checkpoints/full_sft_512.pth \\
        ../shared/tokenizer/minimind2 ../shared/data/dpo_judged_train.jsonl \\
        --held-out ../shared/data/dpo_judged_test.jsonl --runs-dir runs/recipes \\
        --json benchmarks/recipes.json

One epoch of `dpo train` for each point, all from the same weights, over the same pairs in the
same order, scored on the same held-out ones before and after. The *reach* of a point is the sum of
its learning rates. With `--folds K` the data's own prompts are held out instead, a Kth of them at a
time, and the figures are those of all K runs together. A run that is in the folder and complete is
taken as it is: what was interrupted goes on where it ended.

    python benchmarks/recipes.py ../shared/checkpoints/full_sft_512.pth \\
        ../shared/tokenizer/minimind2 ../shared/data/dpo_judged_train.jsonl \\
        --held-out ../shared/data/dpo_judged_test.jsonl --small-data 5,20,60 \\
        --runs-dir runs/small --json benchmarks/recipes_small.json

measures runs of few pairs at several learning rates instead, and continues the JSON file.
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

BRAKES = (
    *(("mean", beta) for beta in (0.1, 2.0, 5.0, 10.0)),
    *(("sum", beta) for beta in (0.1, 0.15)),
)
REACHES = (1e-3, 2e-4, 3e-5)
BATCH_SIZE = 4
LAST_LOSSES = 0.2
"""The share of the micro-batches, at the end of the epoch, whose mean loss is told."""
SHARES = ("rewards/accuracies", "logps/accuracies", "ref_logps/accuracies")
FIGURES = (*SHARES, "loss", "margin_per_token", "kl", "token_logps/chosen", "entropy")
LENGTHS = ("length/like length", "length/chosen longer", "length/rejected longer")


class Point(NamedTuple):
    """A recipe."""

    reduction: str
    beta: float
    reach: float

    @classmethod
    def parse(cls, text: str) -> Point:
        """Read what `str` wrote."""
        reduction, beta, reach = text.split("-", 2)
        return cls(reduction, float(beta.removeprefix("beta")), float(reach.removeprefix("reach")))

    def __str__(self) -> str:
        return f"{self.reduction}-beta{self.beta:g}-reach{self.reach:g}"


class Split(NamedTuple):
    """Rows to train on, and rows to be judged by."""

    name: str
    training: Path
    held_out: Path
    rows: int


def splits(options: argparse.Namespace) -> Iterator[Split]:
    """The first rows and the held-out file; or the folds, in which each prompt is in one part."""
    lines = options.data.read_text(encoding="utf-8").splitlines(keepends=True)[: options.pairs]
    folder: Path = options.runs_dir / "data"
    folder.mkdir(parents=True, exist_ok=True)
    if not options.folds:
        training = folder / "training.jsonl"
        keep(training, lines)
        yield Split("", training, options.held_out.resolve(), len(lines))
        return
    prompts = [json.dumps(json.loads(line)["chosen"][:-1]) for line in lines]
    numbers = {prompt: number for number, prompt in enumerate(dict.fromkeys(prompts))}
    for fold in range(options.folds):
        is_out = [numbers[prompt] % options.folds == fold for prompt in prompts]
        training, held_out = (folder / f"{part}-{fold}.jsonl" for part in ("training", "held_out"))
        kept = list(itertools.compress(lines, (not out for out in is_out)))
        keep(training, kept)
        keep(held_out, list(itertools.compress(lines, is_out)))
        yield Split(f"-fold{fold}", training, held_out.resolve(), len(kept))


def keep(path: Path, lines: Sequence[str]) -> None:
    """Write a file that is not there yet: a run beside this one may be reading it."""
    if not path.exists() or path.read_text(encoding="utf-8") != "".join(lines):
        path.write_text("".join(lines), encoding="utf-8")


def train(options: argparse.Namespace, point: Point, split: Split) -> RunDirectory:
    """The completed run of a point: of an earlier time, or now."""
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
        "train.learning_rate": point.reach / sum(map(schedule.at, range(steps))),
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
    """What a run came to: its reach, its last losses, its held-out pairs before and after."""
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
    """The figures of each group of pairs."""
    return {
        group: {name: found[name] for name in ("pairs", *FIGURES) if name in found}
        for group, found in evaluated.groups.items()
    }


def together(parts: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, dict[str, float]]:
    """The groups of several runs as one, with intervals of the shares; each pair is in one run."""
    whole: dict[str, dict[str, float]] = {}
    for group in dict.fromkeys(group for part in parts for group in part):
        found = [part[group] for part in parts if group in part]
        pairs = sum(each["pairs"] for each in found)
        whole[group] = {"pairs": pairs}
        for name in FIGURES:
            mean = sum(each["pairs"] * each[name] for each in found) / pairs
            whole[group][name] = mean
            if name in SHARES:
                low, high = wilson_interval(mean, int(pairs))
                whole[group] |= {f"{name}/low": low, f"{name}/high": high}
    return whole


def measure(options: argparse.Namespace, point: Point) -> dict[str, Any]:
    """A recipe on all splits."""
    runs = []
    for split in splits(options):
        runs.append(figures(train(options, point, split)))
        after = runs[-1]["after"]["all"]
        print(
            f"{point}{split.name}: accuracy {after['rewards/accuracies']:.3f}, gap"
            f" {after['margin_per_token']:+.3f}, loss {after['loss']:.4f}",
            file=sys.stderr,
        )
    return {
        **point._asdict(),
        "steps": [run["steps"] for run in runs],
        "reach_seen": [run["reach"] for run in runs],
        "last_loss": sum(run["last_loss"] for run in runs) / len(runs),
        "before": together([run["before"] for run in runs]),
        "after": together([run["after"] for run in runs]),
        "answers": [answer for run in runs for answer in run["answers"]],
    }


def show(points: Sequence[Mapping[str, Any]]) -> None:
    """The figures as tables in Markdown."""

    def share(found: Mapping[str, float], name: str) -> str:
        return f"{found[name]:.3f} ({found[f'{name}/low']:.2f} to {found[f'{name}/high']:.2f})"

    print("| reduction | beta | reach | accuracy | like length | chosen longer | rejected longer |")
    print("|---|---|---|---|---|---|---|")
    for point in points:
        shares = [share(point["after"][g], SHARES[0]) for g in ("all", *LENGTHS)]
        print(f"| {_recipe(point)} | {' | '.join(shares)} |")
    print(
        "\n| reduction | beta | reach | loss | last in training | gap | KL | chosen, nats a token"
    )
    print("| entropy | preference accuracy |")
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
    """Return what every report begins with."""
    return {
        "date": datetime.date.today().isoformat(),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "arguments": sys.argv[1:],
    }


def numbers(kind: type) -> Callable[[str], list[Any]]:
    """Return a parser of values with commas between them."""
    return lambda text: [kind(each) for each in text.split(",")]


def main() -> None:
    """The command line."""
    parser = make_parser(__doc__)
    group = parser.add_mutually_exclusive_group(required=True)
    group.add_argument("--held-out", type=Path, help="pairs of other prompts")
    group.add_argument("--folds", type=int, default=0, help="parts of the data's own prompts")
    parser.add_argument("--pairs", type=int, help="rows of the data; else all")
    parser.add_argument("--max-seq-len", type=int, default=448)
    parser.add_argument("--samples", type=int, default=2, help="prompts that are answered")
    parser.add_argument(
        "--only",
        action="append",
        metavar="POINT",
        type=Point.parse,
        help="instead of the grid, such as mean-beta5-reach0.001; may be repeated",
    )
    parser.add_argument("--runs-dir", type=Path, required=True, help="where the runs go")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    small = parser.add_argument_group("runs of few pairs")
    small.add_argument("--small-data", type=numbers(int), metavar="PAIRS,...")
    small.add_argument("--rates", type=numbers(float), metavar="RATE,...", default=RATES)
    small.add_argument("--losses", type=numbers(str), metavar="LOSS,...", default=["mean:5"])
    small.add_argument("--held-out-pairs", type=int, default=60)
    options = parser.parse_args()
    if options.small_data:
        show_small_data(measure_small_data(options, header()))
        return
    grid = [Point(*brake, reach) for reach in REACHES for brake in BRAKES]
    points = [measure(options, point) for point in options.only or grid]
    report = {**header(), "points": points}
    show(points)
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
