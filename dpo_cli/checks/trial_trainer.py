"""Real steps of a run of its own, of which nothing is kept: what they do, cost and take."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dpo_cli.compute.device import Device
from dpo_cli.data.batching import Batch
from dpo_cli.data.sampler import GlobalBatch
from dpo_cli.distributed.process_group import ProcessGroup
from dpo_cli.run.events import Event, StepDone
from dpo_cli.training.inputs import RunInputs
from dpo_cli.training.optimizer import make_optimizer
from dpo_cli.training.reference import LiveReference, NoReference, Reference
from dpo_cli.training.setup import make_scorer
from dpo_cli.training.sources import OnProgress
from dpo_cli.training.trainer import Trainer

WANTED_TOKENS = 1024
MOST_TOKENS = 4096


class TimedReference:
    """The frozen model, and how long it took to answer so far."""

    def __init__(self, reference: Reference, device: Device) -> None:
        self._reference, self._device = reference, device
        self.seconds = 0.0
        self.tokens = 0

    def token_logps(self, indices: Sequence[int], batch: Batch) -> Tensor:
        """See `dpo_cli.training.reference.Reference`."""
        self._device.synchronize()
        began = time.perf_counter()
        logps = self._reference.token_logps(indices, batch)
        self._device.synchronize()
        self.seconds += time.perf_counter() - began
        self.tokens += batch.computed_tokens
        return logps

    def exchange(self, group: ProcessGroup) -> None:
        """See `dpo_cli.training.reference.Reference`: one process tries."""


@dataclass(frozen=True)
class TrialTrainer:
    """A trainer that stands where a run would begin, and nobody looks at."""

    trainer: Trainer
    reference: TimedReference

    @property
    def inputs(self) -> RunInputs:
        """The inputs."""
        return self.trainer.inputs

    def step(self, window: GlobalBatch) -> tuple[StepDone, float]:
        """One real optimizer step, and its seconds without the reference's."""
        before = self.reference.seconds
        self.inputs.device.synchronize()
        began = time.perf_counter()
        done = self.trainer.take_step(window)
        self.inputs.device.synchronize()
        seconds = time.perf_counter() - began
        return done, seconds - (self.reference.seconds - before)


def make_trial_trainer(inputs: RunInputs, on_progress: OnProgress) -> TrialTrainer:
    """Policy, reference and optimizer as a fresh run has them."""
    on_progress("trying step 0", 0, 0, "")
    device = inputs.device
    policy = make_scorer(inputs, inputs.weights)
    asked: Reference = NoReference()
    if inputs.profile.dpo.needs_reference:
        asked = LiveReference(make_scorer(inputs, inputs.reference_weights), device)
    reference = TimedReference(asked, device)
    trainer = Trainer(
        inputs,
        policy,
        reference,
        reference,
        make_optimizer(policy.parameters(), kahan_summation=inputs.profile.train.kahan_summation),
        torch.amp.GradScaler(device.type, enabled=device.dtype == torch.float16),
        hooks=_Unwatched(),
        save=lambda trainer: None,
    )
    return TrialTrainer(trainer, reference)


def modest_micro_batch(inputs: RunInputs) -> tuple[int, ...]:
    """The first epoch's micro-batch nearest to `WANTED_TOKENS`: enough to reach every weight, and
    soon computed; of a large one the first pairs.
    """
    tokens = inputs.pairs.computed_tokens.tolist()
    batch = min(
        inputs.order.micro_batches_of(0),
        key=lambda batch: abs(sum(tokens[index] for index in batch) - WANTED_TOKENS),
    )
    sums = itertools.accumulate(tokens[index] for index in batch)
    return batch[: max(1, sum(total <= MOST_TOKENS for total in sums))]


class _Unwatched:
    """Nobody looks on, and nobody asks."""

    def emit(self, event: Event) -> None:
        """Let it go."""

    def requests(self) -> set[str]:
        """Nothing."""
        return set()

    def progress(self, phase: str, done: int, total: int, unit: str) -> None:
        """Let it go."""

    def on_not_finite(
        self, trainer: Trainer, global_batch: GlobalBatch, losses: Sequence[float]
    ) -> None:
        """Take it as it is: what is looked at here is the gradient itself."""
