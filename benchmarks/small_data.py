"""Grid of runs with few pairs, for `recipes.py --small-data`.

Each point is one epoch with the trainer of `dpo train`, in this process. The reference's log-probs
are computed once for all points, and no checkpoint is saved.
"""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dpo_cli.compute.device import Device, configure_device, resolve
from dpo_cli.compute.loss_scale import make_scaler
from dpo_cli.data.batching import Batch
from dpo_cli.data.chat import ChatTokenizer
from dpo_cli.distributed.process_group import ProcessGroup
from dpo_cli.models.generation import generate, stop_ids_of
from dpo_cli.models.scoring import ResponseScorer
from dpo_cli.objective.held_out import HELD_OUT_METRICS, summarize
from dpo_cli.profile.load import load_profile
from dpo_cli.repetition import repetition
from dpo_cli.run.directory import RunDirectory
from dpo_cli.run.events import Event
from dpo_cli.training.evaluation import score_held_out
from dpo_cli.training.inputs import RunInputs, read_inputs
from dpo_cli.training.optimizer import make_optimizer
from dpo_cli.training.reference import LiveReference
from dpo_cli.training.samples import prompt_of
from dpo_cli.training.setup import frozen_reference, make_scorer
from dpo_cli.training.trainer import Trainer

RATES = (3e-7, 1e-6, 3e-6, 1e-5, 3e-5, 1e-4)
PAIRS = (5, 20, 60, 200, 400)
MAX_TOKENS = 40


class CachedReference:
    """Reference that computes the log-probs of a batch once for all points."""

    def __init__(self, reference: LiveReference) -> None:
        self._reference = reference
        self._known: dict[tuple[int, ...], Tensor] = {}

    def token_logps(self, indices: Sequence[int], batch: Batch) -> Tensor:
        key = tuple(indices)
        if key not in self._known:
            self._known[key] = self._reference.token_logps(indices, batch)
        return self._known[key]

    def exchange(self, group: ProcessGroup) -> None:
        """Do nothing: there is only one process."""


class SilentHooks:
    """Trainer hooks that do nothing except report a step with a loss that is not finite."""

    def emit(self, event: Event) -> None:
        pass

    def requests(self) -> set[str]:
        return set()

    def progress(self, phase: str, done: int, total: int, unit: str) -> None:
        pass

    def on_not_finite(self, trainer: Trainer, global_batch: Any, losses: Sequence[float]) -> None:
        print("skipped a step: its loss is not finite", file=sys.stderr)


class SmallData:
    """Shared weights and held-out pairs of the points with one reduction and beta."""

    def __init__(self, options: Any, folder: Path, reduction: str, beta: float) -> None:
        self.options, self.folder = options, folder
        self.device: Device = resolve("cpu", "float32")
        configure_device(self.device)
        self.dpo = {"dpo.reduction": reduction, "dpo.beta": beta}
        self._reference: LiveReference | None = None
        self._held_out: CachedReference | None = None
        self._answers_before: list[str] | None = None
        self._training: dict[int, tuple[RunInputs, CachedReference]] = {}

    def measure(self, pairs: int, rate: float) -> dict[str, Any]:
        """Train one epoch; return held-out metrics and answers before and after."""
        began = time.process_time()
        inputs, reference = self.read(pairs)
        train = inputs.profile.train.model_copy(update={"learning_rate": rate})
        inputs = dataclasses.replace(
            inputs, profile=inputs.profile.model_copy(update={"train": train})
        )
        assert self._held_out
        policy = make_scorer(inputs, inputs.weights)
        if self._answers_before is None:
            self._answers_before = self.answers(inputs, policy)
        optimizer = make_optimizer(policy.parameters(), inputs.profile.train)
        scaler = make_scaler(self.device.torch_device, self.device.dtype)
        save: Callable[[Trainer], None] = lambda trainer: None  # noqa: E731
        trainer = Trainer(
            inputs, policy, reference, reference, optimizer, scaler, SilentHooks(), save
        )
        losses, after_first = [], math.nan
        for global_batch in inputs.order.global_batches():
            losses += trainer.take_step(global_batch).losses
            if math.isnan(after_first):
                after_first = self.loss_of(trainer, global_batch.micro_batches[0])
        table = score_held_out(
            policy,
            self._held_out,
            inputs.batches.held_out_batches,
            lambda indices: inputs.batches.make_batch(inputs.held_out, indices),
            dpo=inputs.profile.dpo,
            device=self.device,
            on_progress=lambda done: None,
        )
        changes = (table[:, HELD_OUT_METRICS.index("loss")] - math.log(2)).tolist()
        answers = self.answers(inputs, policy)
        return {
            "weights": self.options.model_weights.name,
            "reduction": inputs.profile.dpo.reduction,
            "beta": inputs.profile.dpo.beta,
            "pairs": pairs,
            "rate": rate,
            "trained_pairs": len(inputs.pairs),
            "steps": inputs.order.optimizer_steps,
            "lr_sum": sum(map(inputs.learning_rate.at, inputs.order.last_steps)),
            "first_batch_after_first_step": after_first,
            "last_loss": losses[-1],
            "held_out_pairs": len(inputs.held_out),
            "loss_change": statistics.mean(changes),
            "loss_change_error": statistics.stdev(changes) / len(changes) ** 0.5,
            "held_out": summarize(table),
            "repetition_before": [round(repetition(text), 4) for text in self._answers_before],
            "repetition": [round(repetition(text), 4) for text in answers],
            "answers": list(zip(self._answers_before[:3], answers[:3], strict=True)),
            "cpu_seconds": round(time.process_time() - began, 1),
        }

    def read(self, pairs: int) -> tuple[RunInputs, CachedReference]:
        """Read the inputs of the points with this number of pairs, once."""
        if pairs not in self._training:
            inputs = read_inputs(
                self.profile(pairs), self.device, RunDirectory(self.folder), lambda *_: None
            )
            if self._reference is None:
                self._reference = LiveReference(frozen_reference(inputs), self.device)
                self._held_out = CachedReference(self._reference)
            self._training[pairs] = inputs, CachedReference(self._reference)
        return self._training[pairs]

    def profile(self, pairs: int) -> Any:
        """Write the first rows as files, and return the profile that trains on them."""
        options = self.options
        rows = options.data.read_text(encoding="utf-8").splitlines(keepends=True)[:pairs]
        data, held_out = self.folder / f"pairs-{pairs}.jsonl", self.folder / "held_out.jsonl"
        data.write_text("".join(rows), encoding="utf-8")
        lines = options.held_out.read_text(encoding="utf-8").splitlines(keepends=True)
        count = options.held_out_pairs
        held_out.write_text(
            "".join(lines[n * len(lines) // count] for n in range(count)), encoding="utf-8"
        )
        keys = {
            "model.weights": options.model_weights.resolve(),
            "model.tokenizer": options.tokenizer.resolve(),
            "data.data_path": data.resolve(),
            "data.max_seq_len": options.max_seq_len,
            "data.shuffle": "true",
            "train.epochs": 1,
            "train.batch_size": 4,
            "eval.path": held_out.resolve(),
            **self.dpo,
        }
        empty = self.folder / "recipe.toml"
        empty.write_text("", encoding="utf-8")
        return load_profile(empty, [f"{key}={value}" for key, value in keys.items()]).profile

    @torch.no_grad()
    def loss_of(self, trainer: Trainer, indices: Sequence[int]) -> float:
        """Return the loss of pairs that were just trained on."""
        trainer.policy.eval()
        batch = trainer.inputs.batches.make_batch(trainer.inputs.pairs, indices)
        logps = trainer.reference.token_logps(indices, batch)
        return float(trainer.score(batch, logps)[0].losses.mean())

    def answers(self, inputs: RunInputs, policy: ResponseScorer) -> list[str]:
        """Answer held-out prompts greedily."""
        policy.eval()
        tokenizer = ChatTokenizer(inputs.tokenizer)
        stop_ids = stop_ids_of(inputs.weights.architecture, tokenizer.end_id)
        count = self.options.samples
        answers = []
        for n in range(count):
            ids = generate(
                policy.model,
                prompt_of(inputs.held_out[n * len(inputs.held_out) // count]),
                device=self.device,
                stop_ids=stop_ids,
                max_new_tokens=MAX_TOKENS,
            )
            answers.append(tokenizer.decode([each for each in ids if each not in stop_ids]))
        return answers


def grid(options: Any) -> Iterator[tuple[str, float, int, float]]:
    """Yield reduction, beta, pairs and rate of each requested point."""
    for loss in options.losses:
        reduction, beta = loss.split(":")
        for pairs in options.small_data:
            for rate in options.rates:
                yield reduction, float(beta), pairs, rate


def measure_small_data(options: Any, header: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Measure the points that the JSON file lacks; write the file after each."""
    torch.manual_seed(0)
    report = {**header, "points": []}
    if options.json.exists():
        report = json.loads(options.json.read_text(encoding="utf-8"))
    points: list[dict[str, Any]] = report["points"]
    known = {
        tuple(p[name] for name in ("weights", "reduction", "beta", "pairs", "rate")) for p in points
    }
    options.runs_dir.mkdir(parents=True, exist_ok=True)
    grids: dict[tuple[str, float], SmallData] = {}
    for reduction, beta, pairs, rate in grid(options):
        if (options.model_weights.name, reduction, beta, pairs, rate) in known:
            continue
        if (reduction, beta) not in grids:
            grids = {(reduction, beta): SmallData(options, options.runs_dir, reduction, beta)}
        point = grids[reduction, beta].measure(pairs, rate)
        points.append(point)
        text = json.dumps(report, indent=1, ensure_ascii=False) + "\n"
        options.json.write_text(text, encoding="utf-8")
        print(*small_data_row(point), point["cpu_seconds"], file=sys.stderr, flush=True)
    return points


def small_data_row(point: Mapping[str, Any]) -> list[str]:
    """Format a point as the cells of a table."""
    held_out = point["held_out"]
    before, after = (statistics.mean(point[name]) for name in ("repetition_before", "repetition"))
    return [
        f"{point['pairs']}",
        f"{point['rate']:g}",
        f"{point['reduction']}, {point['beta']:g}",
        f"{point['first_batch_after_first_step']:.3f}",
        f"{held_out['loss']:.4f}",
        f"{point['loss_change']:+.4f} ± {1.96 * point['loss_change_error']:.4f}",
        f"{held_out['margin_per_token']:+.4f}",
        f"{held_out['kl']:+.4f}",
        f"{held_out['rewards/accuracies']:.2f}",
        f"{before:.2f} -> {after:.2f}",
    ]


def show_small_data(points: Sequence[Mapping[str, Any]]) -> None:
    """Print the points as a table in Markdown."""
    print("| pairs | learning rate | loss | first batch after one step | held-out loss | change")
    print("| margin/token | KL | accuracy | repetition |\n" + "|---" * 10 + "|")
    for point in points:
        print(f"| {' | '.join(small_data_row(point))} |")
