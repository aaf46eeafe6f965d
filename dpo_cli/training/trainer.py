"""Training loop of Direct Preference Optimization (Rafailov et al. 2023, arXiv:2305.18290)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_

from dpo_cli.compute import loss_scale
from dpo_cli.compute.memory import process_bytes
from dpo_cli.data.batching import Batch
from dpo_cli.data.sampler import GlobalBatch
from dpo_cli.distributed.process_group import MAY_SAVE, SINGLE_PROCESS, STOPS, ProcessGroup
from dpo_cli.models.scoring import ResponseScorer, Scores
from dpo_cli.objective.losses import PairScores, score_pairs, zero_loss
from dpo_cli.paired import ModelScores
from dpo_cli.run.events import EVALUATION, Alert, Event, Sampled, StepDone
from dpo_cli.training.batches import Forward
from dpo_cli.training.best import BestSoFar
from dpo_cli.training.checkpointing import pause_seconds
from dpo_cli.training.evaluation import evaluation_event, pair_scores, score_held_out
from dpo_cli.training.inputs import RunInputs
from dpo_cli.training.optimizer import gradient_norm, set_learning_rate
from dpo_cli.training.reference import CachedReference, Reference
from dpo_cli.training.samples import Sampler
from dpo_cli.training.step_metrics import StepMetrics, rank_figures, weights_moved

_CLIP_TOLERANCE = 1e-5
"""torch clips by `max_norm / (norm + 1e-6)`, at most 1. While the norm is below the limit by more
than this, that factor is 1, and the multiplication of every gradient is left out."""


class TrainerHooks(Protocol):
    """Callbacks of the trainer at each step boundary."""

    def emit(self, event: Event) -> None:
        """Append to the event stream."""
        ...

    def keep_scores(self, optimizer_step: int, scores: ModelScores) -> None:
        """Store the metrics of each held-out pair after a step."""
        ...

    def requests(self) -> set[str]:
        """Return the new requests of the user: "save", "evaluate", or one of `STOPS`."""
        ...

    def progress(self, phase: str, done: int, total: int, unit: str) -> None:
        """Report the progress of an evaluation."""
        ...

    def on_not_finite(
        self, trainer: Trainer, global_batch: GlobalBatch, losses: Sequence[float]
    ) -> None:
        """Report the pairs of a step whose loss or gradient is not finite, and keep a dump.

        Raises:
            DpoError: the run must stop here.
        """
        ...


@dataclass
class Trainer:
    """A run in progress, on this rank.

    Attributes:
        inputs: inputs of the run.
        policy: the trained model.
        reference, held_out_reference: log-probs of the frozen model for both kinds of pairs.
        optimizer, scaler: the loss scaler is enabled for float16 only.
        hooks: see `TrainerHooks`.
        save: saves a checkpoint; collective.
        group: the ranks that train together.
        optimizer_step: number of optimizer steps done.
        best: lowest held-out loss so far.
        sampler: generates answers after evaluations, if the profile asks for any.
        has_overflowed: a step without an update because of float16 was reported since this start.
    """

    inputs: RunInputs
    policy: ResponseScorer
    reference: Reference
    held_out_reference: Reference
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    hooks: TrainerHooks
    save: Callable[[Trainer], None]
    group: ProcessGroup = SINGLE_PROCESS
    optimizer_step: int = 0
    best: BestSoFar = field(default_factory=BestSoFar)
    sampler: Sampler | None = None
    has_overflowed: bool = False

    def train(self) -> str | None:
        """Train until the last planned step, the end of patience, or a request to stop.

        Saves at the end in each case.

        Returns:
            The request that stopped the run ("interrupted" or "terminated"); None if it is over.
        """
        profile, order = self.inputs.profile, self.inputs.order
        save_not_before = time.monotonic() + profile.train.save_min_seconds
        if self.optimizer_step == 0:
            self.evaluate()
        steps = order.global_batches(start=self.optimizer_step)
        for global_batch, forwards in self.inputs.batches.forwards(steps, self.group.rank):
            if self.is_over:
                break
            step_before = self.step
            self.hooks.emit(self.take_step(global_batch, forwards))
            requests = self.requests(save_not_before)
            if self.step % order.micro_batches_per_epoch == 0:
                self.reference.exchange(self.group)

            is_best = False
            is_eval_due = _has_passed(profile.eval.interval, step_before, self.step)
            if self.is_over or "evaluate" in requests or is_eval_due:
                is_best = self.evaluate(is_due=is_eval_due)
                # An evaluation may take long: read new requests before deciding to save and stop.
                requests |= self.requests(save_not_before)

            has_passed = _has_passed(profile.train.save_interval, step_before, self.step)
            is_save_due = has_passed and MAY_SAVE in requests
            is_kept = is_best and profile.eval.keep_best
            if self.is_over or is_save_due or is_kept or requests & {"save", *STOPS}:
                save_not_before = self.save_checkpoint()
            if not self.is_over and (stops := requests & STOPS):
                return max(stops)  # "terminated" takes precedence
        return None

    def take_step(
        self, global_batch: GlobalBatch, forwards: Iterator[Forward] | None = None
    ) -> StepDone:
        """Take one optimizer step on the pairs of a global batch.

        Args:
            global_batch: the pairs.
            forwards: forwards of this rank; None to make them here.

        Raises:
            DpoError: a loss or gradient is not finite, and `train.nan_policy` is "stop"; the
                weights are unchanged.
        """
        began, cpu_began = time.perf_counter(), time.thread_time()
        metrics = StepMetrics(global_batch.micro_batches)
        self.policy.train()
        if forwards is None:
            [(_, forwards)] = self.inputs.batches.forwards([global_batch], self.group.rank)
        with self.group.computing():
            for forward in forwards:
                loss = self.loss_of(forward, metrics)
                self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]

        if self.group.world_size > 1:
            # Else the queued work of a GPU would count as waiting, and hide the slow rank.
            self.inputs.device.synchronize()
        busy_seconds = time.perf_counter() - began

        parameters = list(self.inputs.trainable.optimized(self.policy.model).values())
        self.group.all_reduce_gradients(parameters)
        self.scaler.unscale_(self.optimizer)
        grad_norm = self.group.whole(gradient_norm(parameters))
        values = metrics.reduce(self.group, grad_norm)
        losses = metrics.losses(self.inputs.router_aux_loss_coef)
        is_skipped = not all(map(math.isfinite, (values["grad_norm"], *losses)))
        # Finite losses whose scaled gradients overflow float16 are normal, until the scale is 1.
        if is_skipped:
            if all(map(math.isfinite, losses)) and loss_scale.can_halve(self.scaler):
                self.report_overflow(global_batch)
            else:
                self.hooks.on_not_finite(self, global_batch, losses)
        # The schedule is asked by micro-batch; the step uses the rate of its last one.
        learning_rate = self.inputs.learning_rate.at(global_batch.last_step)
        self.update_weights(parameters, grad_norm, values["grad_norm"], learning_rate, is_skipped)
        loss_scale.update_scale(self.scaler, is_skipped=is_skipped)

        step_before = self.step
        self.optimizer_step += 1
        if self.is_logged(step_before):
            values |= weights_moved(self.inputs, self.policy, self.group)
        return StepDone(
            step=self.step,
            optimizer_step=self.optimizer_step,
            epoch=global_batch.epoch + 1,
            learning_rate=learning_rate,
            losses=losses,
            metrics=values,
            pairs=metrics.pairs,
            tokens=metrics.tokens,
            padding_tokens=metrics.padding_tokens,
            seconds=time.perf_counter() - began,
            process_bytes=process_bytes(),
            device_bytes=self.inputs.device.peak_bytes(),
            is_skipped=is_skipped,
            cpu_seconds=time.thread_time() - cpu_began if self.device.type == "cpu" else 0.0,
            **rank_figures(self.group, self.inputs.device, busy_seconds),
        )

    # --- parts of a step -------------------------------------------------------------------------

    def loss_of(self, forward: Forward, metrics: StepMetrics) -> Tensor:
        """Return the part of a forward in the loss of the step, and add its metrics."""
        indices, batch, weights = forward.indices, forward.batch, forward.weights
        reference_logps = self.reference.token_logps(indices, batch)
        if forward.is_empty:
            with self.inputs.device.autocast():
                nothing: Scores = self.policy(batch)
            return zero_loss(nothing.token_logps, nothing.mask, nothing.aux_loss)
        scores, aux_loss = self.score(batch, reference_logps)
        # Equation 7 of the paper: the mean over pairs of -log sigmoid(beta * margin). With the
        # weights, the forwards of a step add up to that mean, however its pairs are grouped.
        loss = (scores.losses * weights).sum()
        if aux_loss is not None:
            loss = loss + self.inputs.aux_loss_weight * aux_loss.to(loss.device)
        metrics.add(indices, scores, aux_loss, batch)
        return loss

    def score(self, batch: Batch, reference_logps: Tensor) -> tuple[PairScores, Tensor | None]:
        """Return losses and rewards of the pairs of a batch, and the aux_loss of the experts.

        Args:
            batch: P pairs.
            reference_logps: (2P, time), token log-probs of the reference.
        """
        dpo = self.inputs.profile.dpo
        with self.inputs.device.autocast():
            scores: Scores = self.policy(batch)
        pairs = score_pairs(
            scores.token_logps, reference_logps, scores.mask, dpo, scores.log_sum_sq_probs
        )
        return pairs, scores.aux_loss

    def update_weights(
        self,
        parameters: Sequence[torch.nn.Parameter],
        grad_norm: Tensor,
        grad_norm_value: float,
        learning_rate: float,
        is_skipped: bool,
    ) -> None:
        """Clip the gradients by their global norm, apply them, and clear them."""
        grad_clip = self.inputs.profile.train.grad_clip
        if grad_norm_value > grad_clip - _CLIP_TOLERANCE:
            clip_grads_with_norm_(parameters, grad_clip, grad_norm)
        set_learning_rate(self.optimizer, learning_rate)
        if not is_skipped:
            self.scaler.step(self.optimizer)
        self.optimizer.zero_grad(set_to_none=True)

    def report_overflow(self, global_batch: GlobalBatch) -> None:
        """Report the first step that float16 skips; later ones have only `StepDone.is_skipped`."""
        if not self.has_overflowed:
            self.has_overflowed = True
            self.hooks.emit(
                Alert(
                    code="float16-overflow",
                    message=f"step {global_batch.last_step + 1}: scaled gradients overflowed"
                    " float16; this update is skipped and the loss scale halved",
                    remedy="No action is needed: a few such steps at the start are normal.",
                )
            )

    def is_logged(self, step_before: int) -> bool:
        """Return True for the first and last step, and one per `log_interval` micro-batches."""
        log_interval = self.inputs.profile.train.log_interval
        is_last = self.optimizer_step == self.inputs.order.optimizer_steps
        return step_before == 0 or is_last or _has_passed(log_interval, step_before, self.step)

    # --- position, requests, saving --------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        """Device of the policy."""
        return self.inputs.device.torch_device

    @property
    def step(self) -> int:
        """Number of micro-batches done, which MiniMind's script calls steps."""
        return self.inputs.order.steps_done(self.optimizer_step)

    @property
    def is_over(self) -> bool:
        """Return True if all planned steps are done, or the patience has run out."""
        return self.optimizer_step == self.inputs.order.optimizer_steps or self.is_out_of_patience

    @property
    def is_out_of_patience(self) -> bool:
        """Return True if the last `eval.patience` evaluations did not improve on the best."""
        patience = self.inputs.profile.eval.patience
        return bool(patience) and self.best.evaluations_since >= patience

    def requests(self, save_not_before: float) -> set[str]:
        """Return the requests that any rank has received, and `MAY_SAVE` once saving is allowed.

        Only the main rank reads the clock: all ranks must decide alike. Collective.
        """
        requests = self.hooks.requests()
        if self.group.is_main and time.monotonic() >= save_not_before:
            requests.add(MAY_SAVE)
        return self.group.all_reduce_requests(requests)

    def save_checkpoint(self) -> float:
        """Save; return the earliest monotonic time at which `save_interval` saves again."""
        began = time.monotonic()
        self.save(self)
        ended = time.monotonic()
        return ended + pause_seconds(self.inputs.profile.train, ended - began)

    # --- evaluation ------------------------------------------------------------------------------

    @property
    def evaluated_policy(self) -> ResponseScorer | CachedReference:
        """The policy, or the cached reference while both score identically."""
        reference = self.held_out_reference
        if self.optimizer_step == 0 and self.inputs.policy_starts_as_reference:
            return reference if isinstance(reference, CachedReference) else self.policy
        return self.policy

    def evaluate(self, *, is_due: bool = True) -> bool:
        """Score the held-out pairs, if there are any, and report the metrics.

        Args:
            is_due: True for an evaluation of `eval.interval`; only those count for the patience.

        Returns:
            True if no evaluation before had a lower loss.
        """
        held_out = self.inputs.held_out
        if not held_out:
            return False
        began = time.perf_counter()

        def report(pairs: int) -> None:
            done = min(pairs * self.group.world_size, len(held_out))
            self.hooks.progress(EVALUATION, done, len(held_out), "pairs")

        table = score_held_out(
            self.evaluated_policy,
            self.held_out_reference,
            self.inputs.batches.held_out_batches,
            partial(self.inputs.batches.make_batch, held_out),
            dpo=self.inputs.profile.dpo,
            device=self.inputs.device,
            on_progress=report,
            group=self.group,
        )
        self.held_out_reference.exchange(self.group)
        event = evaluation_event(
            table, self.inputs, self.optimizer_step, time.perf_counter() - began
        )
        scores = pair_scores(table, self.inputs.held_out_prompts)
        self.hooks.keep_scores(self.optimizer_step, scores)
        self.hooks.emit(event)
        self.sample()
        return self.best.update(event.metrics["loss"], self.optimizer_step, is_due=is_due)

    def sample(self) -> None:
        """Generate answers of policy and reference to a few prompts, and report them.

        Only the main rank generates, unless ranks share a model; the others wait without a limit.
        """
        sampler = self.sampler
        if sampler is None:
            return
        began = time.perf_counter()

        def report(done: int, total: int) -> None:
            self.hooks.progress(EVALUATION, done, total, "answers")

        stage = f"sampled-{self.optimizer_step}"
        own = sampler.sample(self.policy, report) if self.group.is_sharded else None
        samples = self.group.broadcast_from_main(
            stage, lambda: sampler.sample(self.policy, report) if own is None else own
        )
        self.hooks.emit(
            Sampled(
                step=self.step,
                optimizer_step=self.optimizer_step,
                samples=tuple(samples),
                seconds=time.perf_counter() - began,
            )
        )


def _has_passed(interval: int, before: int, after: int) -> bool:
    """Return True if a multiple of `interval` lies in (before, after]; 0 disables the interval.

    An optimizer step covers several micro-batches, so `after % interval == 0` would miss most.
    """
    return bool(interval) and after // interval > before // interval
