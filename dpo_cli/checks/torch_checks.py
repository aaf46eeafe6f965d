"""Checks that need torch: they read the inputs, and take real steps."""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dpo_cli.checks.data import CheckedData, check_data, check_masks
from dpo_cli.checks.first_step import check_first_step, check_layout, check_start_answers
from dpo_cli.checks.forecast import check_forecast
from dpo_cli.checks.launch import check_launch, check_world_size
from dpo_cli.checks.lr_sum import check_lr_sum, check_update
from dpo_cli.checks.memory_need import check_need, check_need_of_config
from dpo_cli.checks.model import check_fit, check_tokenizer, check_weights
from dpo_cli.checks.pairs import check_held_out, check_overlap, check_template
from dpo_cli.checks.preview import preview
from dpo_cli.checks.quantization import check_quantization
from dpo_cli.checks.reporter import Reporter
from dpo_cli.checks.resources import check_contention, check_device, check_disk, check_plan
from dpo_cli.checks.strategy import check_strategy, needs_shards
from dpo_cli.checks.template import check_ending, check_headers, check_scored_words
from dpo_cli.checks.trial_trainer import TrialTrainer, make_trial_trainer
from dpo_cli.compute.device import Device, configure_device
from dpo_cli.data.chat import ChatTokenizer
from dpo_cli.data.sources import Source
from dpo_cli.data.tokens import Rows
from dpo_cli.findings import Diagnosis
from dpo_cli.models.loading import ModelWeights
from dpo_cli.profile.inputs import Input
from dpo_cli.profile.schema import Profile
from dpo_cli.run.cpu_time import StolenTime
from dpo_cli.training.failures import explain
from dpo_cli.training.inputs import RunInputs, assemble_inputs
from dpo_cli.training.plan import make_plan
from dpo_cli.training.setup import configure_torch
from dpo_cli.training.sources import (
    OnProgress,
    held_out_pairs,
    require_same_vocabulary,
    training_pairs,
)

_STEPS = "a check without --quick: tokenizer fit, first loss, gradients, update, memory and time"
_INPUT_CODES = (
    *("plan", "tokenizer-fit", "first-loss", "gradients"),
    *("lr-sum", "saturation", "memory", "time"),
)


@dataclass(frozen=True)
class TorchChecks:
    """Checks of the inputs one after another, then of the run that they form.

    An input that cannot be used is None, and the checks that need it are reported as skipped.

    Attributes:
        reporter: has the findings so far, and gets all others.
        profile: profile without errors.
        unusable: inputs whose file cannot be used.
        runs_root: directory of runs.
        on_progress: called with phase, done, total (0 if unknown) and unit.
        import_seconds: time to import torch and the rest, which a run needs, too.
        takes_steps: also score pairs and take real steps.
    """

    reporter: Reporter
    profile: Profile
    unusable: Collection[Input]
    runs_root: Path
    on_progress: OnProgress
    import_seconds: float
    takes_steps: bool = True

    def run(self, pair: str | None) -> Diagnosis:
        """Run all checks, from the device to the disk, and return all findings."""
        reporter, profile = self.reporter, self.profile
        configure_torch(profile)
        device = check_device(reporter, profile)
        world_size = check_launch(reporter, profile, device, self.on_progress)
        configure_device(device, tf32=profile.train.tf32)
        began = time.perf_counter()
        weights, reference = self.read_weights()
        tokenizer = check_tokenizer(reporter, profile) if self.has_file("tokenizer") else None
        startup_seconds = self.import_seconds + time.perf_counter() - began
        data = self.encode("data", training_pairs(profile), tokenizer)
        held_out = None
        if profile.eval.path is not None or "held_out" in self.unusable:
            held_out = self.encode("held_out", held_out_pairs(profile), tokenizer)
        shown = None
        if data and tokenizer:
            check_masks(reporter, data.rows)
            check_template(reporter, tokenizer, data.rows, data.issues)
            check_headers(reporter, tokenizer)
            check_ending(reporter, tokenizer, weights)
            check_scored_words(reporter, tokenizer, data.rows)
            shown = preview(reporter, data.rows, tokenizer, pair)

        facts: dict[str, Any] = data.facts() if data else {}
        if weights is None and not self.takes_steps:
            facts |= _named("memory_need", check_need_of_config(reporter, profile, device))
        rows = data.rows if data else None
        inputs = self.assemble(device, weights, reference, tokenizer, rows, held_out)
        if inputs and data:
            check_overlap(reporter, inputs, data.issues, (held_out or data).issues)
            if held_out or profile.eval.path is None:
                check_held_out(reporter, inputs)
            check_plan(reporter, inputs)
            if world_size != 1 and world_size is not None:
                check_world_size(reporter, inputs, world_size)
                facts["strategy"] = check_strategy(reporter, inputs, world_size)
            facts["plan"] = make_plan(inputs).to_dict()
            facts |= self.compute(inputs, tokenizer, startup_seconds)
        facts["disk_bytes"] = check_disk(reporter, profile, self.runs_root, weights)
        histograms = data.histograms if data else ()
        return Diagnosis(tuple(reporter.findings), shown, facts, histograms)

    def read_weights(self) -> tuple[ModelWeights | None, ModelWeights | None]:
        """Read the weights of policy and reference, which are one object unless they differ."""
        weights = reference = None
        if self.has_file("weights") and self.has_file("adapter"):
            weights = check_weights(self.reporter, self.profile, "weights", self.runs_root)
        if self.profile.model.reference is None and "reference" not in self.unusable:
            return weights, weights
        if self.has_file("reference"):
            reference = check_weights(self.reporter, self.profile, "reference", self.runs_root)
        return weights, reference

    def encode(
        self, name: Input, source: Source | None, tokenizer: ChatTokenizer | None
    ) -> CheckedData | None:
        """Encode and check the pairs of a source; None if none can be used."""
        if source is None or not self.has_file(name):
            return None
        if tokenizer is None:
            self.reporter.skip(name.replace("_", "-"), "the tokenizer")
            return None
        return check_data(self.reporter, self.profile, source, tokenizer, self.on_progress)

    def compute(
        self, inputs: RunInputs, tokenizer: ChatTokenizer | None, startup_seconds: float
    ) -> dict[str, Any]:
        """Score pairs and take real steps; return the figures for `dpo check --json`."""
        reporter, on_progress = self.reporter, self.on_progress
        facts: dict[str, Any] = {}
        takes_steps = self.takes_steps
        if takes_steps and needs_shards(inputs):
            takes_steps = False
            reporter.skip("steps", "a device that holds the whole model")
        elif not takes_steps:
            reporter.skip("steps", _STEPS)
        if not takes_steps:
            facts["memory_need"] = check_need(reporter, inputs)
        else:
            reporter.show()
        began, cpu_began, stolen = time.perf_counter(), time.thread_time(), StolenTime()
        try:
            trial = self.try_out(inputs, tokenizer) if takes_steps else None
            facts["lr_sum"] = asdict(check_lr_sum(reporter, inputs))
            if trial is None:
                return facts
            check_update(reporter, trial)
            facts["forecast"] = check_forecast(reporter, trial, startup_seconds, on_progress)
            del trial  # and its memory, before the weights are loaded in float32
            facts |= _named("quantization", check_quantization(reporter, inputs, on_progress))
            if inputs.device.type == "cpu":
                seconds, cpu_seconds = time.perf_counter() - began, time.thread_time() - cpu_began
                check_contention(reporter, seconds, cpu_seconds, stolen.share())
        except Exception as error:
            explained = explain(error)
            if explained is None:
                raise
            subject = str(inputs.device.torch_device)
            reporter.error("first-step", subject, explained.message, explained.remedy)
        return facts

    def try_out(self, inputs: RunInputs, tokenizer: ChatTokenizer | None) -> TrialTrainer:
        """Check fit, layout, first step and the start model's answers; return the trainer."""
        check_fit(self.reporter, inputs, self.on_progress)
        trial = make_trial_trainer(inputs, self.on_progress)
        check_layout(self.reporter, trial)
        check_first_step(self.reporter, trial)
        if tokenizer:
            check_start_answers(self.reporter, trial, tokenizer, self.on_progress)
        return trial

    def assemble(
        self,
        device: Device,
        weights: ModelWeights | None,
        reference: ModelWeights | None,
        tokenizer: ChatTokenizer | None,
        rows: Rows | None,
        held_out: CheckedData | None,
    ) -> RunInputs | None:
        """Build the inputs of a run; None if one is missing or they do not fit each other."""
        if not (weights and reference and tokenizer and rows):
            available = {"weights": weights and reference, "tokenizer": tokenizer, "data": rows}
            missing = " and ".join(name for name, value in available.items() if not value)
            for code in _INPUT_CODES:
                self.reporter.skip(code, missing)
            return None
        profile = self.profile
        if held_out is None:  # an unusable file is reported already, and must not end this check
            evaluation = profile.eval.model_copy(update={"path": None})
            profile = profile.model_copy(update={"eval": evaluation})
        with self.reporter.errors_as("inputs-misfit", ""):
            require_same_vocabulary(tokenizer, weights, reference)
            held_out_rows = held_out.rows if held_out else None
            return assemble_inputs(
                profile, device, tokenizer, weights, reference, rows, held_out_rows
            )
        return None

    def has_file(self, name: Input) -> bool:
        """Return True if the file of an input exists; otherwise report its check as skipped."""
        if name in self.unusable:
            self.reporter.skip(name.replace("_", "-"), "its file")
        return name not in self.unusable


def _named(name: str, figures: dict[str, Any] | None) -> dict[str, Any]:
    """Return figures under a name; nothing if there are none."""
    return {} if figures is None else {name: figures}
