"""Callbacks of the trainer: from training to the run directory, and back."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Sequence
from typing import Protocol

import torch

from dpo_cli.alerts.history import RunFacts
from dpo_cli.alerts.rules import AlertRules
from dpo_cli.compute.device import DTYPES
from dpo_cli.data.sampler import GlobalBatch
from dpo_cli.distributed.process_group import ProcessGroup, StartCancelledError
from dpo_cli.errors import DpoError
from dpo_cli.models.split_weights import full_weight
from dpo_cli.paired import ModelScores
from dpo_cli.run.cpu_time import StolenTime
from dpo_cli.run.directory import RunDirectory
from dpo_cli.run.disk import explain_disk_errors
from dpo_cli.run.event_writer import EventWriter, NullEventWriter
from dpo_cli.run.events import (
    Alert,
    Event,
    Progress,
    StepDone,
    history,
)
from dpo_cli.run.held_out_scores import write_scores
from dpo_cli.training.checkpointing import (
    optimizer_tensors,
    rng_states,
    state_bytes,
    whole_state,
)
from dpo_cli.training.inputs import RunInputs
from dpo_cli.training.nan_dump import has_nan_dump, not_finite_gradients, write_nan_dump
from dpo_cli.training.saving import commit
from dpo_cli.training.sources import training_pairs
from dpo_cli.training.trainer import Trainer

_PROGRESS_SECONDS = 0.5


class StopSource(Protocol):
    """Source of a request to stop; see `dpo_cli.training.worker.Signals`."""

    stop: str | None


class RunHooks:
    """Trainer hooks of a run; see `dpo_cli.training.trainer.TrainerHooks`.

    Args:
        run: directory of the run.
        signals: source of a request to stop.
        group: the ranks that train together. Only the main rank writes events.
    """

    def __init__(self, run: RunDirectory, signals: StopSource, group: ProcessGroup) -> None:
        self.run, self.signals, self.group = run, signals, group
        self.events = EventWriter(run.events_path) if group.is_main else NullEventWriter()
        self.can_cancel = True
        """Nothing is lost if the run stops at once, without a checkpoint."""
        self._alert_rules: AlertRules | None = None
        self._stolen = StolenTime()
        self._phase = ""
        self._progress_at = 0.0

    def start_alerts(self, inputs: RunInputs) -> None:
        """Report alerts from now on; the rules see the earlier events of the run first."""
        if self.group.is_main:
            self._alert_rules = AlertRules(run_facts(inputs), history(self.run.events_path))

    def emit(self, event: Event) -> None:
        """Append to the stream, and after it the alerts that follow from the event."""
        self.can_cancel = False
        self.events.append(event)
        if self._alert_rules is not None:
            is_step = isinstance(event, StepDone)
            free_bytes = shutil.disk_usage(self.run.path).free if is_step else None
            for alert in self._alert_rules.take(event, free_bytes, self._stolen.share):
                self.events.append(alert)

    def emit_once(self, alert: Alert | None) -> None:
        """Append an alert unless an earlier start of the run did."""
        if alert is None or not self.group.is_main:
            return
        events = history(self.run.events_path)
        if all(event.code != alert.code for event in events if isinstance(event, Alert)):
            self.events.append(alert)

    def keep_scores(self, optimizer_step: int, scores: ModelScores) -> None:
        """Store the metrics of each held-out pair.

        The trainer calls this before it emits the event, so that readers of the event find them.
        """
        if self.group.is_main:
            write_scores(self.run.held_out_path, optimizer_step, scores)

    def requests(self) -> set[str]:
        """Take the request of the control file, and a stop that a signal requested."""
        request = self.run.take_request() if self.group.is_main else None
        if request == "stop":
            request = "interrupted"
        return {word for word in (request, self.signals.stop) if word}

    def progress(self, phase: str, done: int, total: int, unit: str) -> None:
        """Report the progress of a phase, at most twice a second.

        Raises:
            StartCancelledError: the run must stop, and has not begun to train. Later, the trainer
                stops at the next step boundary and saves.
        """
        if self.can_cancel and (self.signals.stop or self.run.is_requested("stop")):
            raise StartCancelledError
        now = time.monotonic()
        if phase != self._phase or done == total or now - self._progress_at >= _PROGRESS_SECONDS:
            self._phase, self._progress_at = phase, now
            self.events.append(Progress(phase=phase, done=done, total=total, unit=unit))

    def save(self, trainer: Trainer) -> None:
        """Write the weights and commit a checkpoint.

        Collective: the main rank writes, and the others wait however long it takes. With shards,
        they also send their parts of each tensor that it writes.
        """
        for reference in (trainer.reference, trainer.held_out_reference):
            reference.exchange(self.group)
        trainable, model, group = trainer.inputs.trainable, trainer.policy.model, self.group
        if not group.is_sharded:
            # A checkpoint has one copy of the weights, so it must be every rank's.
            optimized = trainable.optimized(model).values()
            group.require_same("the weights", map(full_weight, optimized))
        rng = rng_states(group, trainer.device)
        state = whole_state(trainable, model, group)
        if group.is_sharded and not group.is_main:
            for _ in optimizer_tensors(trainable, model, trainer.optimizer, group):
                pass  # the main rank gathers them while it writes
        group.broadcast_from_main(
            f"saved-{trainer.optimizer_step}",
            lambda: self.events.append(commit(self.run, trainer, state, rng, self.events.flush)),
        )

    def on_not_finite(
        self, trainer: Trainer, global_batch: GlobalBatch, losses: Sequence[float]
    ) -> None:
        """Dump the step whose loss or gradient is not finite, and report its pairs.

        Raises:
            DpoError: `train.nan_policy` is "stop".
        """
        pairs, step = trainer.inputs.pairs, trainer.optimizer_step + 1
        not_finite = [n for n, loss in enumerate(losses) if not math.isfinite(loss)]
        # If only the gradient is not finite, any pair of the step may be the cause.
        suspects = [global_batch.micro_batches[n] for n in not_finite] or global_batch.micro_batches
        lines = pairs.lines.tolist()
        suspect_lines = [lines[index] for indices in suspects for index in indices]
        rows = pairs.places.names(suspect_lines, most=len(suspect_lines))
        is_skipped = trainer.inputs.profile.train.nan_policy == "skip"
        root = self.run.nan_dump_path
        dump = root / f"step-{step:08d}"
        # A dump is as large as the model, and a run that skips may have many such steps: it keeps
        # the first one.
        is_dumped = self.group.broadcast_from_main(
            f"not-finite-{step}", lambda: not (is_skipped and has_nan_dump(root))
        )
        if is_dumped:
            model = trainer.policy.model
            gradients = not_finite_gradients(model, self.group, step)
            state = whole_state(trainer.inputs.trainable, model, self.group)
            if self.group.is_main:
                with explain_disk_errors(root):
                    write_nan_dump(dump, global_batch, lines, losses, gradients, state)
        problem = f"the {'loss' if not_finite else 'gradient'} is not a finite number"
        message = f"optimizer step {step}: {problem}"
        where = f"{rows} of {training_pairs(trainer.inputs.profile)}"
        if is_skipped:
            self.emit(
                Alert(
                    code="not-finite",
                    message=f"{message}; this update is skipped: {where}",
                    remedy=f"Inspect these rows; the dump of the first such step is in {root}.",
                )
            )
            return
        raise DpoError(
            f"{message}; the weights were not touched",
            "Inspect these rows, or lower train.learning_rate; or resume with"
            " --set train.nan_policy=skip --allow-changes. Earlier checkpoints are intact.",
            [where, f"the dump of the step is in {dump}"],
        )


def run_facts(inputs: RunInputs) -> RunFacts:
    """Return the constants of a run that alert rules compare events with."""
    profile, order, pairs = inputs.profile, inputs.order, inputs.pairs
    parameters = inputs.trainable.parameters
    file_bytes = DTYPES[inputs.export_dtype].itemsize

    def rows_of(optimizer_step: int, micro_batch: int) -> str:
        global_batch = next(order.global_batches(start=optimizer_step - 1))
        lines = pairs.lines[list(global_batch.micro_batches[micro_batch])].tolist()
        return pairs.places.names(lines, most=len(lines))

    return RunFacts(
        recipe=inputs.current_recipe,
        optimizer_steps=order.optimizer_steps,
        vocab_size=inputs.weights.architecture.vocab_size,
        saturation_margin=inputs.saturation_margin or 0.0,
        export_dtype=inputs.export_dtype,
        adam_epsilon=profile.train.adam_epsilon if profile.train.optimizer == "adamw" else 0.0,
        keeps_small_updates=inputs.export_rounding == "stochastic",
        state_bytes=state_bytes(parameters, profile.train, profile.model.weights_dtype)
        + file_bytes * parameters,
        threads=torch.get_num_threads(),
        rows_of=rows_of,
    )
