"""Share of a training update that float16, bfloat16 and float32 represent, in real runs.

    python benchmarks/precision.py ../shared/checkpoints/full_sft_256_moe.pth \\
        ../shared/tokenizer/minimind2 ../shared/data/dpo_judged_train.jsonl \\
        ../shared/data/dpo_judged_test.jsonl --json benchmarks/precision.json

Trains one run per learning rate with the code of the training worker. The gradients of each step
also go to two other optimizers with their own copies of the weights: AdamW with
`train.kahan_summation`, and AdamW in float64. Then the float32 weights of the run are rounded in
each way that `dpo export` offers, and each result is evaluated on the held-out pairs.
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
    """Stop signal that is never set."""

    stop: str | None = None


class ParallelOptimizers:
    """Two other optimizers that take each step of the run's optimizer on copies of the weights."""

    def __init__(self, weights: list[Parameter]) -> None:
        self.kahan_summation = [Parameter(weight.detach().clone()) for weight in weights]
        self.exact = [Parameter(weight.detach().double()) for weight in weights]
        self._kahan_optimizer = make_optimizer(self.kahan_summation, Train(kahan_summation=True))
        self._optimizers = [
            (self._kahan_optimizer, self.kahan_summation),
            (make_optimizer(self.exact, Train()), self.exact),
        ]

    def step(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        """Take the same step. A pre-step hook: gradients are clipped, the learning rate is set."""
        [group] = optimizer.param_groups
        for other, parameters in self._optimizers:
            for parameter, weight in zip(parameters, group["params"], strict=True):
                parameter.grad = weight.grad.to(parameter.dtype)
            set_learning_rate(other, group["lr"])
            other.step()

    def compensation(self) -> list[Tensor]:
        """Return the rounding errors of the kahan_summation weights, kept by the optimizer."""
        return [
            self._kahan_optimizer.state[weight][COMPENSATION] for weight in self.kahan_summation
        ]


def sample_rows(source: Path, target: Path, rows: int) -> Path:
    """Copy `rows` evenly spaced rows of a file."""
    lines = source.read_bytes().splitlines(keepends=True)
    target.write_bytes(b"".join(lines[n * len(lines) // rows] for n in range(rows)))
    return target


def convert_weights(options: argparse.Namespace, folder: Path) -> Path:
    """Round the starting weights to another dtype, and return the path of the new file."""
    state = torch.load(options.model_weights, weights_only=True)
    path = folder / options.model_weights.name
    dtype = getattr(torch, options.source_dtype)
    torch.save({name: tensor.to(dtype) for name, tensor in state.items()}, path)
    return path


def train(
    options: argparse.Namespace, folder: Path, learning_rate: float
) -> tuple[Any, ParallelOptimizers]:
    """Train a run with the worker's code and the parallel optimizers."""
    profile = folder / "precision.toml"
    profile.write_text(
        f"""
        [model]
        weights = "{options.model_weights.resolve()}"
        tokenizer = "{options.tokenizer.resolve()}"
        [data]
        data_path = "{sample_rows(options.data, folder / "pairs.jsonl", options.pairs)}"
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
        path = "{sample_rows(options.held_out, folder / "held_out.jsonl", options.held_out_pairs)}"
        """
    )
    parallel: list[ParallelOptimizers] = []

    def make_with_parallel(parameters: Any, *settings: Any) -> torch.optim.Optimizer:
        optimizer = make_optimizer(parameters, *settings)
        parallel.append(ParallelOptimizers(optimizer.param_groups[0]["params"]))
        optimizer.register_step_pre_hook(parallel[0].step)
        return optimizer

    run = RunDirectory.create(folder, "precision", to_toml(load_profile(profile).profile))
    setup.make_optimizer = make_with_parallel
    if session.train_run(run.path, NeverStopped()) is not ExitCode.DONE:
        raise SystemExit(f"the run failed: {run.path}")
    return run, parallel[0]


def measure(options: argparse.Namespace, folder: Path, learning_rate: float) -> dict[str, Any]:
    """Train one run; compare its float32 weights with float64, and its files with its update."""
    began = time.monotonic()
    run, parallel = train(options, folder, learning_rate)
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

    exact, kahan_summation = on_disk(parallel.exact), on_disk(parallel.kahan_summation)
    compensation = on_disk(parallel.compensation())
    compensated = {
        name: kahan_summation[name].double() + error.double()
        for name, error in compensation.items()
    }
    start_weights = {name: tensor.double() for name, tensor in start.state.items()}
    norms = [name for name, tensor in start_weights.items() if tensor.dim() == 1]  # all near 1
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
        "update_rms": update_rms(exact, start_weights),
        "masters": {
            "plain": relative_error(state, exact, start_weights),
            "plain, norms alone": relative_error(state, exact, start_weights, norms),
            "kahan_summation weight": relative_error(kahan_summation, exact, start_weights),
            "kahan_summation weight and compensation": relative_error(
                compensated, exact, start_weights
            ),
            "plain, weights that never moved": unmoved_share(state, start_weights),
            "kahan_summation, weights that never moved": unmoved_share(compensated, start_weights),
        },
        "kahan_summation": {n: scores[-1][metric] for n, metric in METRICS.items()},
        "files": files,
        "seconds": round(time.monotonic() - began),
    }


def steps_of(run: RunDirectory) -> list[StepDone]:
    """Return the optimizer steps of a run."""
    return [event for event in history(run.events_path) if isinstance(event, StepDone)]


def relative_error(
    weights: Mapping[str, Tensor],
    exact: Mapping[str, Tensor],
    start: Mapping[str, Tensor],
    names: list[str] | None = None,
) -> float:
    """Return |weights - exact| / |exact - start|."""
    off = sum(float((weights[n].double() - exact[n]).square().sum()) for n in names or exact)
    update = sum(float((exact[n] - start[n]).square().sum()) for n in names or exact)
    return float((off / update) ** 0.5)


def update_rms(exact: Mapping[str, Tensor], start: Mapping[str, Tensor]) -> float:
    """Return the root mean square of the update over all weights."""
    count = sum(tensor.numel() for tensor in exact.values())
    squares = sum(float((exact[n] - start[n]).square().sum()) for n in exact)
    return float((squares / count) ** 0.5)


def unmoved_share(weights: Mapping[str, Tensor], start: Mapping[str, Tensor]) -> float:
    """Return the share of the weights that equal their start."""
    count = sum(tensor.numel() for tensor in start.values())
    return sum(int((weights[n].double() == start[n]).sum()) for n in start) / count


def spacings() -> list[dict[str, float]]:
    """Return the distance from each magnitude to the next larger number of each format."""
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
    """Print the figures as tables in Markdown."""
    print("| a weight of | float32 | float16 | bfloat16 |\n|---|---|---|---|")
    for row in report["spacings"]:
        print("| " + " | ".join(f"{value:.3g}" for value in row.values()) + " |")
    for run in report["runs"]:
        print(
            f"\nlearning rate {run['learning_rate']:g}, {run['steps']} steps, lr_sum"
            f" {run['reach']:.2e}, rms of the update {run['update_rms']:.2e}\n"
        )
        for name, value in run["masters"].items():
            print(f"- {name}: {value:.3g}")
        print("\n| file | changed | retention | relative error | accuracy | margin/token | loss |")
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
    """Format the mean, and for several values the smallest and the largest."""
    if len(values) < 2:
        return format(values[0], form) if values else ""
    spread = f" ({min(values):{form}} to {max(values):{form}})"
    return format(statistics.mean(values), form) + spread


def main() -> None:
    """Run the command line."""
    parser = make_parser(__doc__)
    parser.add_argument("held_out", type=Path, help="JSONL file of held-out pairs")
    parser.add_argument("--pairs", type=int, default=256)
    parser.add_argument("--held-out-pairs", type=int, default=146)
    parser.add_argument("--max-seq-len", type=int, default=256)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to FILE")
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
                own.model_weights = convert_weights(options, Path(folder))
            report["runs"].append(measure(own, Path(folder), learning_rate))
        print(f"{learning_rate:g}: {report['runs'][-1]['seconds']} s", file=sys.stderr)
        if options.json:
            options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    show(report)


if __name__ == "__main__":
    main()
