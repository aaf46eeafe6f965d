"""What number formats keep of an update: real runs, their files, and their masters.

    python benchmarks/precision.py ../shared/checkpoints/full_sft_256_moe.pth \\
        ../shared/tokenizer/minimind2 ../shared/data/dpo_judged_train.jsonl \\
        ../shared/data/dpo_judged_test.jsonl --json benchmarks/precision.json

One run for each learning rate, by the worker's own code. Beside it the same gradients go to two
shadows: AdamW with `train.kahan_summation`, and AdamW in float64. Then the run's float32 state is
rounded in every way that `dpo export` knows, and each result scores the held-out pairs.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from inputs import make_parser
from torch import Tensor
from torch.nn import Parameter

from dpo_cli.errors import ExitCode
from dpo_cli.export.update_retention import measure_update_retention
from dpo_cli.inference.evaluate import evaluate_held_out
from dpo_cli.models.convert import StateDict
from dpo_cli.models.loading import build_model, load_model_weights, to_disk_names
from dpo_cli.models.minimind import MiniMind
from dpo_cli.models.rounding import Rounding, round_weights
from dpo_cli.profile.load import load_profile
from dpo_cli.profile.resolved import to_toml
from dpo_cli.profile.train import Train
from dpo_cli.run.directory import RunDirectory
from dpo_cli.run.events import StepDone, history
from dpo_cli.training import session, setup
from dpo_cli.training.checkpointing import load_weights
from dpo_cli.training.optimizer import COMPENSATION, make_optimizer, set_learning_rate

LEARNING_RATES = (1e-8, 5e-7, 2e-5)
SEEDS = (1, 2, 3)
FILES: tuple[tuple[str, Rounding, tuple[int, ...]], ...] = (
    ("float32", "nearest", (0,)),
    ("float16", "nearest", (0,)),
    ("float16", "stochastic", SEEDS),
    ("bfloat16", "nearest", (0,)),
    ("bfloat16", "stochastic", SEEDS),
)
MAGNITUDES = (0.001, 0.02, 0.25, 1.0)
METRICS = {"accuracy": "rewards/accuracies", "margin_per_token": "margin_per_token", "loss": "loss"}


class NeverStopped:
    """Nobody asks."""

    stop: str | None = None


class Shadows:
    """Other masters of the same weights, which take every step of the run's own optimizer."""

    def __init__(self, weights: list[Parameter]) -> None:
        self.kahan_summation = [Parameter(weight.detach().clone()) for weight in weights]
        self.exact = [Parameter(weight.detach().double()) for weight in weights]
        self.compensating = make_optimizer(self.kahan_summation, Train(kahan_summation=True))
        self._optimizers = [
            (self.compensating, self.kahan_summation),
            (make_optimizer(self.exact), self.exact),
        ]

    def follow(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        """The hook before a step: its gradients are clipped, its rate is set."""
        [group] = optimizer.param_groups
        for shadow, parameters in self._optimizers:
            for own, weight in zip(parameters, group["params"], strict=True):
                own.grad = weight.grad.to(own.dtype)
            set_learning_rate(shadow, group["lr"])
            shadow.step()

    def compensation(self) -> list[Tensor]:
        """What the kahan_summation weights could not hold."""
        return [self.compensating.state[weight][COMPENSATION] for weight in self.kahan_summation]


def thin(source: Path, target: Path, rows: int) -> Path:
    """So many rows, evenly from the whole file."""
    lines = source.read_bytes().splitlines(keepends=True)
    target.write_bytes(b"".join(lines[n * len(lines) // rows] for n in range(rows)))
    return target


def converted(options: argparse.Namespace, folder: Path) -> Path:
    """Write the starting weights in another dtype, which they then represent exactly."""
    state = torch.load(options.model_weights, weights_only=True)
    path = folder / options.model_weights.name
    dtype = getattr(torch, options.source_dtype)
    torch.save({name: tensor.to(dtype) for name, tensor in state.items()}, path)
    return path


def train(options: argparse.Namespace, folder: Path, learning_rate: float) -> tuple[Any, Shadows]:
    """A run of the worker's own code, with shadows beside its optimizer."""
    profile = folder / "precision.toml"
    profile.write_text(
        f"""
        [model]
        weights = "{options.model_weights.resolve()}"
        tokenizer = "{options.tokenizer.resolve()}"
        [data]
        data_path = "{thin(options.data, folder / "pairs.jsonl", options.pairs)}"
        max_seq_len = {options.max_seq_len}
        shuffle = true
        [dpo]
        beta = {options.beta}
        reduction = "{options.reduction}"
        [train]
        epochs = 1
        learning_rate = {learning_rate}
        device = "cpu"
        [eval]
        path = "{thin(options.held_out, folder / "held_out.jsonl", options.held_out_pairs)}"
        """
    )
    followed: list[Shadows] = []

    def make_followed(parameters: Any, *settings: Any) -> torch.optim.Optimizer:
        optimizer = make_optimizer(parameters, *settings)
        followed.append(Shadows(optimizer.param_groups[0]["params"]))
        optimizer.register_step_pre_hook(followed[0].follow)
        return optimizer

    run = RunDirectory.create(folder, "precision", to_toml(load_profile(profile).profile))
    setup.make_optimizer = make_followed
    if session.train_run(run.path, NeverStopped()) is not ExitCode.DONE:
        raise SystemExit(f"the run failed: {run.path}")
    return run, followed[0]


def measure(options: argparse.Namespace, folder: Path, learning_rate: float) -> dict[str, Any]:
    """One run: how far its masters are from float64, and what files have of its update."""
    began = time.monotonic()
    run, shadows = train(options, folder, learning_rate)
    start = load_model_weights(options.model_weights, {})
    checkpoint, _ = run.newest_verified()
    state = load_weights(checkpoint.path)
    plan = run.read_plan()
    model = build_model(MiniMind(**plan.model.shape), state)
    names = [name for name, _ in model.named_parameters()]

    def on_disk(tensors: list[Any]) -> StateDict:
        return to_disk_names(
            model, {name: tensor.detach() for name, tensor in zip(names, tensors, strict=True)}
        )

    exact, kahan_summation = on_disk(shadows.exact), on_disk(shadows.kahan_summation)
    kept = on_disk(shadows.compensation())
    masters = {name: kahan_summation[name].double() + kept[name].double() for name in kept}
    begun = {name: tensor.double() for name, tensor in start.state.items()}
    large = [name for name, tensor in begun.items() if tensor.dim() == 1]  # norms, all near 1
    weights = [
        (dtype, rounding, seed, round_weights(state, dtype, rounding, seed))
        for dtype, rounding, seeds in FILES
        for seed in seeds
    ]
    evaluation = evaluate_held_out(
        run, (), [*(each for *_, each in weights), kahan_summation], lambda *_: None
    )
    scores = [model.groups["all"] for model in evaluation.models]
    files: list[dict[str, Any]] = []
    for (dtype, rounding, seed, rounded), score in zip(weights, scores, strict=False):
        retention = measure_update_retention(start, state, rounded, dtype)
        assert retention is not None
        figures = {name: score[metric] for name, metric in METRICS.items()}
        files.append(
            {"dtype": dtype, "rounding": rounding, "seed": seed} | vars(retention) | figures
        )
    steps = plan.steps.optimizer_steps
    return {
        "learning_rate": learning_rate,
        "steps": steps,
        "reach": sum(event.learning_rate for event in steps_of(run)),
        "update_rms": rms(exact, begun),
        "masters": {
            "plain": error(state, exact, begun),
            "plain, norms alone": error(state, exact, begun, large),
            "kahan_summation weight": error(kahan_summation, exact, begun),
            "kahan_summation weight and compensation": error(masters, exact, begun),
            "plain, weights that never moved": still(state, begun),
            "kahan_summation, weights that never moved": still(masters, begun),
        },
        "kahan_summation": {n: scores[-1][metric] for n, metric in METRICS.items()},
        "files": files,
        "seconds": round(time.monotonic() - began),
    }


def steps_of(run: RunDirectory) -> list[StepDone]:
    """The optimizer steps of a run."""
    return [event for event in history(run.events_path) if isinstance(event, StepDone)]


def error(
    weights: Mapping[str, Tensor],
    exact: Mapping[str, Tensor],
    start: Mapping[str, Tensor],
    names: list[str] | None = None,
) -> float:
    """|weights - exact| / |exact - start|."""
    off = sum(float((weights[n].double() - exact[n]).square().sum()) for n in names or exact)
    update = sum(float((exact[n] - start[n]).square().sum()) for n in names or exact)
    return float((off / update) ** 0.5)


def rms(exact: Mapping[str, Tensor], start: Mapping[str, Tensor]) -> float:
    """Of the update, over all weights."""
    count = sum(tensor.numel() for tensor in exact.values())
    squares = sum(float((exact[n] - start[n]).square().sum()) for n in exact)
    return float((squares / count) ** 0.5)


def still(weights: Mapping[str, Tensor], start: Mapping[str, Tensor]) -> float:
    """The share of weights that are what they were."""
    count = sum(tensor.numel() for tensor in start.values())
    return sum(int((weights[n].double() == start[n]).sum()) for n in start) / count


def spacings() -> list[dict[str, float]]:
    """From each magnitude to the next number of a format."""
    rows = []
    for magnitude in MAGNITUDES:
        row = {"magnitude": magnitude}
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            number = torch.tensor(magnitude, dtype=dtype)
            above = torch.nextafter(number, torch.tensor(torch.inf, dtype=dtype))
            row[str(dtype).removeprefix("torch.")] = float(above.double() - number.double())
        rows.append(row)
    return rows


def show(report: dict[str, Any]) -> None:
    """The figures as tables in Markdown."""
    print("| a weight of | float32 | float16 | bfloat16 |\n|---|---|---|---|")
    for row in report["spacings"]:
        print("| " + " | ".join(f"{value:.3g}" for value in row.values()) + " |")
    for run in report["runs"]:
        print(
            f"\nlearning rate {run['learning_rate']:g}, {run['steps']} steps, reach"
            f" {run['reach']:.2e}, rms of the update {run['update_rms']:.2e}\n"
        )
        for name, value in run["masters"].items():
            print(f"- {name}: {value:.3g}")
        print("\n| file | changed | kept | relative error | accuracy | gap | loss |")
        print("|---" * 7 + "|")
        by_kind: dict[str, list[dict[str, Any]]] = {}
        for file in run["files"]:
            by_kind.setdefault(f"{file['dtype']}, {file['rounding']}", []).append(file)
        by_kind["float32, kahan_summation"] = [run["kahan_summation"]]
        for kind, files in by_kind.items():
            columns = (
                *(("changed", ".3%"), ("kept", ".3g"), ("relative_error", ".3g")),
                *(("accuracy", ".3f"), ("margin_per_token", "+.3g"), ("loss", ".5f")),
            )
            cells = [cell([f[name] for f in files if name in f], form) for name, form in columns]
            print(f"| {kind} | {' | '.join(cells)} |")


def cell(values: list[float], form: str) -> str:
    """The mean, and of several the least and the most."""
    if len(values) < 2:
        return format(values[0], form) if values else ""
    spread = f" ({min(values):{form}} to {max(values):{form}})"
    return format(statistics.mean(values), form) + spread


def main() -> None:
    """The command line."""
    parser = make_parser(__doc__)
    parser.add_argument("held_out", type=Path)
    parser.add_argument("--pairs", type=int, default=256)
    parser.add_argument("--held-out-pairs", type=int, default=146)
    parser.add_argument("--max-seq-len", type=int, default=256)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    parser.add_argument("--beta", type=float, default=5.0)
    parser.add_argument("--reduction", default="mean")
    parser.add_argument("--rates", type=float, nargs="+", default=LEARNING_RATES)
    parser.add_argument(
        "--source-dtype", metavar="DTYPE", help="round the starting weights to this dtype first"
    )
    options = parser.parse_args()
    report: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "arguments": sys.argv[1:],
        "spacings": spacings(),
        "runs": [],
    }
    for learning_rate in options.rates:
        with tempfile.TemporaryDirectory() as folder:
            os.environ["DPO_CACHE_DIR"] = str(Path(folder, "cache"))
            own = argparse.Namespace(**vars(options))
            if options.source_dtype:
                own.model_weights = converted(options, Path(folder))
            report["runs"].append(measure(own, Path(folder), learning_rate))
        print(f"{learning_rate:g}: {report['runs'][-1]['seconds']} s", file=sys.stderr)
        if options.json:
            options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    show(report)


if __name__ == "__main__":
    main()
