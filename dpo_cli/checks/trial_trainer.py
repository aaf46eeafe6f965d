"""Throw-away trainer at step 0, for measurements on real steps."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from dpo_cli.compute.device import Device
from dpo_cli.compute.loss_scale import make_scaler
from dpo_cli.data.batching import Batch
from dpo_cli.data.sampler import GlobalBatch
from dpo_cli.distributed.process_group import ProcessGroup
from dpo_cli.paired import ModelScores
from dpo_cli.run.events import Event, StepDone
from dpo_cli.training.inputs import RunInputs
from dpo_cli.training.optimizer import make_optimizer
from dpo_cli.training.reference import LiveReference, NoReference, Reference
from dpo_cli.training.setup import frozen_reference, make_scorer
from dpo_cli.training.sources import OnProgress
from dpo_cli.training.trainer import Trainer

TARGET_TOKENS = 1024
MAX_TOKENS = 4096


class TimedReference:
    """Reference model that measures its seconds and computed tokens."""

    def __init__(self, reference: Reference, device: Device) -> None:
        self._reference, self._device = reference, device
        self.seconds = 0.0
        self.tokens = 0

    def token_logps(self, indices: Sequence[int], batch: Batch) -> Tensor:
        """See `dpo_cli.training.reference.Reference`."""
        # CUDA calls return before their work is done; the clock needs the device to be idle.
        self._device.synchronize()
        began = time.perf_counter()
        logps = self._reference.token_logps(indices, batch)
        self._device.synchronize()
        self.seconds += time.perf_counter() - began
        self.tokens += batch.computed_tokens
        return logps

    def exchange(self, group: ProcessGroup) -> None:
        """Do nothing: there is only one process."""

    def complete(self, group: ProcessGroup, on_progress: OnProgress) -> None:
        """Do nothing: there is only one process."""


@dataclass(frozen=True)
class Sample:
    """One real step: tokens that the policy computes, and seconds without the reference."""

    tokens: int
    seconds: float


@dataclass(frozen=True)
class TrialTrainer:
    """Trainer of a fresh run, whose steps are neither saved nor reported."""

    trainer: Trainer
    reference: TimedReference

    @property
    def inputs(self) -> RunInputs:
        """Inputs of the run."""
        return self.trainer.inputs

    def step(self, global_batch: GlobalBatch) -> tuple[StepDone, float]:
        """Take one optimizer step; return it with its seconds without the reference."""
        before = self.reference.seconds
        self.inputs.device.synchronize()
        began = time.perf_counter()
        done = self.trainer.take_step(global_batch)
        self.inputs.device.synchronize()
        seconds = time.perf_counter() - began
        return done, seconds - (self.reference.seconds - before)


def make_trial_trainer(inputs: RunInputs, on_progress: OnProgress) -> TrialTrainer:
    """Build policy, reference and optimizer as a fresh run would."""
    on_progress("trying step 0", 0, 0, "")
    device = inputs.device
    policy = make_scorer(inputs, inputs.trainable.start, is_trained=True)
    optimized = inputs.trainable.optimized(policy.model).values()
    reference: Reference = NoReference()
    if inputs.profile.dpo.needs_reference:
        reference = LiveReference(frozen_reference(inputs, policy), device)
    timed = TimedReference(reference, device)
    trainer = Trainer(
        inputs,
        policy,
        timed,
        timed,
        make_optimizer(optimized, inputs.profile.train, policy.model),
        make_scaler(device.torch_device, device.dtype),
        hooks=_NoHooks(),
        save=lambda trainer: None,
    )
    return TrialTrainer(trainer, timed)


def small_micro_batch(inputs: RunInputs) -> tuple[int, ...]:
    """Return the micro-batch of the first epoch whose size is nearest to `TARGET_TOKENS`.

    This is enough to reach every weight, and fast to compute. A large batch is cut to its first
    pairs, with at most `MAX_TOKENS` tokens.
    """
    tokens = inputs.pairs.computed_tokens.tolist()
    batch = min(
        inputs.order.micro_batches_of(0),
        key=lambda batch: abs(sum(tokens[index] for index in batch) - TARGET_TOKENS),
    )
    sums = itertools.accumulate(tokens[index] for index in batch)
    return batch[: max(1, sum(total <= MAX_TOKENS for total in sums))]


class _NoHooks:
    """Hooks that ignore all events and never ask the trainer to stop."""

    def emit(self, event: Event) -> None:
        pass

    def keep_scores(self, optimizer_step: int, scores: ModelScores) -> None:
        pass

    def requests(self) -> set[str]:
        return set()

    def progress(self, phase: str, done: int, total: int, unit: str) -> None:
        pass

    def on_not_finite(
        self, trainer: Trainer, global_batch: GlobalBatch, losses: Sequence[float]
    ) -> None:
        """Do nothing: `check_first_step` looks at the gradient itself."""
