"""The training loop: Direct Preference Optimization, one window of micro-batches after another."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from dpo_cli.compute.device import DTYPES, process_bytes
from dpo_cli.data.batching import Batch, to_device
from dpo_cli.data.sampler import GlobalBatch
from dpo_cli.distributed.process_group import MAY_SAVE, SINGLE_PROCESS, STOPS, ProcessGroup
from dpo_cli.models.loading import to_disk_names
from dpo_cli.models.scoring import ResponseScorer, Scores
from dpo_cli.objective.held_out import means
from dpo_cli.objective.losses import PairScores, score_pairs
from dpo_cli.profile.schema import Train
from dpo_cli.run.events import EVALUATION, Alert, Evaluated, Event, Sampled, StepDone
from dpo_cli.training.best import BestSoFar
from dpo_cli.training.evaluation import score_held_out, summarize_groups
from dpo_cli.training.inputs import RunInputs
from dpo_cli.training.optimizer import set_learning_rate
from dpo_cli.training.reference import CachedReference, Reference
from dpo_cli.training.samples import Sampler
from dpo_cli.training.step_metrics import StepMetrics

_SAVING_SHARE = 0.006
"""Of the time: together with events and panel less than a hundredth."""
_CLIP_MARGIN = 1e-5
"""Below the limit by more than this torch would multiply every gradient by one."""


class TrainerHooks(Protocol):
    """What the loop asks at each step boundary, and tells."""

    def emit(self, event: Event) -> None:
        """Append to the event stream."""
        ...

    def asked(self) -> set[str]:
        """What was asked for since the last call: "save", "evaluate", or one of `STOPS`."""
        ...

    def progress(self, phase: str, done: int, total: int, unit: str) -> None:
        """Tell how far an evaluation is."""
        ...

    def not_finite(self, trainer: Trainer, window: GlobalBatch, losses: Sequence[float]) -> None:
        """Name the pairs of a window whose update must not be made, and keep what shows why.

        Raises:
            DpoError: the run is to stop here.
        """
        ...


@dataclass
class Trainer:
    """A run in progress, on this rank; `optimizer_step` counts the steps done."""

    inputs: RunInputs
    policy: ResponseScorer
    reference: Reference
    held_out_reference: Reference
    optimizer: torch.optim.AdamW
    scaler: torch.amp.GradScaler
    hooks: TrainerHooks
    save: Callable[[Trainer], None]
    group: ProcessGroup = SINGLE_PROCESS
    optimizer_step: int = 0
    best: BestSoFar = field(default_factory=BestSoFar)
    sampler: Sampler | None = None

    def train(self) -> str | None:
        """Train to the end of the plan or of all patience, or until asked to stop; saved always.

        Returns:
            Why it was asked to stop ("interrupted", "terminated"); None if the run is over.
        """
        profile, order = self.inputs.profile, self.inputs.order
        save_not_before = time.monotonic() + profile.train.save_min_seconds
        if self.optimizer_step == 0:
            self.evaluate()
        for window in order.global_batches(start=self.optimizer_step):
            if self.is_over:
                break
            before = self.step
            self.hooks.emit(self.take_step(window))
            asked = self.asked(save_not_before)
            if self.step % order.micro_batches_per_epoch == 0:
                self.reference.exchange(self.group)
            is_best = False
            is_due = _passed(profile.eval.interval, before, self.step)
            if self.is_over or "evaluate" in asked or is_due:
                is_best = self.evaluate(is_due=is_due)
                asked |= self.asked(save_not_before)
            due = MAY_SAVE in asked and _passed(profile.train.save_interval, before, self.step)
            kept = is_best and profile.eval.keep_best
            if self.is_over or due or kept or asked & {"save", *STOPS}:
                save_not_before = self.save_and_rest()
            if not self.is_over and (stops := asked & STOPS):
                return max(stops)
        return None

    @property
    def is_over(self) -> bool:
        """Whether every planned step is done, or no patience is left."""
        return self.optimizer_step == self.inputs.order.optimizer_steps or self.is_out_of_patience

    @property
    def is_out_of_patience(self) -> bool:
        """Whether as many evaluations as `eval.patience` allows were no better than the best."""
        patience = self.inputs.profile.eval.patience
        return bool(patience) and self.best.evaluations_since >= patience

    def asked(self, save_not_before: float) -> set[str]:
        """What any rank was asked for, and whether the leader has rested since its last save."""
        asked = self.hooks.asked()
        if self.group.is_main and time.monotonic() >= save_not_before:
            asked.add(MAY_SAVE)
        return self.group.all_reduce_requests(asked)

    def save_and_rest(self) -> float:
        """Save, and say until when (in monotonic seconds) no interval need save again."""
        began = time.monotonic()
        self.save(self)
        ended = time.monotonic()
        return ended + rest_seconds(self.inputs.profile.train, ended - began)

    @property
    def device(self) -> torch.device:
        """Where all is computed."""
        return self.inputs.device.torch_device

    @property
    def step(self) -> int:
        """Micro-batches done, as the reference script counts."""
        return self.inputs.order.steps_done(self.optimizer_step)

    def take_step(self, window: GlobalBatch) -> StepDone:
        """One optimizer step: the gradient of a window's micro-batches, clipped, applied.

        Raises:
            DpoError: a loss or gradient is not finite, and the profile says to stop then; the
                weights are as before the step.
        """
        began = time.perf_counter()
        figures = StepMetrics(window.micro_batches)
        self.policy.train()
        for forward in self.inputs.batches.micro_batches_by_rank(window.micro_batches)[
            self.group.rank
        ]:
            batch = self.inputs.batches.make_batch(self.inputs.pairs, forward.indices)
            weights = to_device(torch.tensor(forward.weights, dtype=torch.float64), self.device)
            reference = self.reference.token_logps(forward.indices, batch)
            pairs, balance = self.score(batch, reference)
            loss = (pairs.losses * weights).sum()
            if balance is not None:
                loss = loss + self.inputs.aux_loss_weight * balance
            self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            figures.add(forward.indices, pairs, balance, batch)

        if self.group.world_size > 1:
            # Else a card's work would count as waiting for the others, and hide who is slow.
            self.inputs.device.synchronize()
        busy_seconds = time.perf_counter() - began
        parameters = list(self.policy.parameters())
        self.group.all_reduce_gradients(parameters)
        self.scaler.unscale_(self.optimizer)
        grad_norm = get_total_norm([p.grad for p in parameters if p.grad is not None])
        metrics = figures.read(self.group, grad_norm)
        losses = figures.losses(self.inputs.router_aux_loss_coef)
        is_skipped = not math.isfinite(metrics["grad_norm"]) or not all(map(math.isfinite, losses))
        if is_skipped:
            self.explain_skip(window, losses)
        grad_clip = self.inputs.profile.train.grad_clip
        if metrics["grad_norm"] > grad_clip - _CLIP_MARGIN:
            clip_grads_with_norm_(parameters, grad_clip, grad_norm)
        learning_rate = self.inputs.learning_rate.at(window.last_step)
        set_learning_rate(self.optimizer, learning_rate)
        if not is_skipped:
            self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        before = self.step
        self.optimizer_step += 1
        is_logged = _passed(self.inputs.profile.train.log_interval, before, self.step)
        is_last = self.optimizer_step == self.inputs.order.optimizer_steps
        if self.group.is_main and (before == 0 or is_logged or is_last):
            metrics["weights_moved"] = self.weights_moved()
        return StepDone(
            step=self.step,
            optimizer_step=self.optimizer_step,
            epoch=window.epoch + 1,
            learning_rate=learning_rate,
            losses=losses,
            metrics=metrics,
            pairs=figures.pairs,
            tokens=figures.tokens,
            padding_tokens=figures.padding_tokens,
            seconds=time.perf_counter() - began,
            process_bytes=process_bytes(),
            device_bytes=self.inputs.device.peak_bytes(),
            is_skipped=is_skipped,
            **self.of_each_rank(busy_seconds),
        )

    def of_each_rank(self, busy_seconds: float) -> dict[str, Any]:
        """How long each rank computed, and the memory it holds; nothing of one that is alone."""
        if self.group.world_size == 1:
            return {}
        held = self.inputs.device.peak_bytes() or process_bytes()
        own = torch.tensor([busy_seconds, held], dtype=torch.float64)
        seconds, memory = zip(*(its.tolist() for its in self.group.all_gather(own)), strict=True)
        return {"rank_seconds": seconds, "rank_bytes": tuple(map(int, memory))}

    def score(self, batch: Batch, reference: Tensor) -> tuple[PairScores, Tensor | None]:
        """Losses and rewards of a batch, and the balance of the experts where there are any."""
        dpo = self.inputs.profile.dpo
        with self.inputs.device.autocast():
            scores: Scores = self.policy(batch)
        pairs = score_pairs(
            scores.token_logps, reference, scores.mask, dpo, scores.log_sum_sq_probs
        )
        return pairs, scores.aux_loss

    def weights_moved(self) -> float:
        """The share of weights whose half-precision value is no longer the checkpoint's."""
        half = DTYPES[self.inputs.export_dtype]
        start = self.inputs.weights.state
        now = to_disk_names(self.policy.model, self.policy.model.state_dict())
        moved = sum(
            int((tensor.to(half) != start[name].to(tensor.device, half)).sum())
            for name, tensor in now.items()
        )
        return moved / self.inputs.weights.parameters

    @property
    def evaluated(self) -> ResponseScorer | CachedReference:
        """What held-out pairs are scored with: not the policy while it is still the reference."""
        reference = self.held_out_reference
        if self.optimizer_step or not self.inputs.policy_starts_as_reference:
            return self.policy
        return reference if isinstance(reference, CachedReference) else self.policy

    def evaluate(self, *, is_due: bool = True) -> bool:
        """Score the held-out pairs, if there are any, and report.

        Args:
            is_due: whether the profile asks for it at this step.

        Returns:
            Whether the policy was never better.
        """
        held_out = self.inputs.held_out
        if not held_out:
            return False
        began = time.perf_counter()

        def tell(pairs: int) -> None:
            done = min(pairs * self.group.world_size, len(held_out))
            self.hooks.progress(EVALUATION, done, len(held_out), "pairs")

        table = score_held_out(
            self.evaluated,
            self.held_out_reference,
            self.inputs.batches.held_out_batches,
            partial(self.inputs.batches.make_batch, held_out),
            dpo=self.inputs.profile.dpo,
            device=self.inputs.device,
            on_progress=tell,
            group=self.group,
        )
        self.held_out_reference.exchange(self.group)
        metrics = means(table)
        self.hooks.emit(
            Evaluated(
                step=self.step,
                optimizer_step=self.optimizer_step,
                metrics=metrics,
                groups=summarize_groups(table, self.inputs.held_out_groups),
                pairs=len(table),
                seconds=time.perf_counter() - began,
            )
        )
        self.sample()
        return self.best.take(metrics["loss"], self.optimizer_step, is_due=is_due)

    def sample(self) -> None:
        """Have policy and reference answer a few prompts, if that is asked for, and report.

        The leader does, while the others wait as long as it takes.
        """
        sampler = self.sampler
        if sampler is None:
            return
        began = time.perf_counter()

        def tell(done: int, total: int) -> None:
            self.hooks.progress(EVALUATION, done, total, "answers")

        stage = f"sampled-{self.optimizer_step}"
        samples = self.group.broadcast_from_main(stage, lambda: sampler.sample(self.policy, tell))
        self.hooks.emit(
            Sampled(
                step=self.step,
                optimizer_step=self.optimizer_step,
                samples=tuple(samples),
                seconds=time.perf_counter() - began,
            )
        )

    def explain_skip(self, window: GlobalBatch, losses: Sequence[float]) -> None:
        """Tell why no update is made of this window's gradient.

        Under float16 the scaler has a step skipped whose scaled gradients overflow: its work.

        Raises:
            DpoError: the profile has the run stop at what is not a finite number.
        """
        if self.scaler.is_enabled() and all(map(math.isfinite, losses)):
            self.hooks.emit(_overflowed(window))
        else:
            self.hooks.not_finite(self, window, losses)


def rest_seconds(train: Train, saving_seconds: float) -> float:
    """From a save that took so long until an interval saves again.

    Large states rest longer than `save_min_seconds`: saving takes at most 0.6 % of the time,
    however slow the disk. With 0 every interval saves.
    """
    least = train.save_min_seconds
    return max(least, saving_seconds / _SAVING_SHARE) if least else 0.0


def _overflowed(window: GlobalBatch) -> Alert:
    return Alert(
        code="float16-overflow",
        message=f"step {window.last_step + 1}: scaled gradients overflowed float16; this update is"
        " skipped and the loss scale halved",
        remedy="a few at the start are normal",
    )


def _passed(interval: int, before: int, after: int) -> bool:
    """Whether a multiple of the interval lies in (before, after]; 0 is no interval."""
    return bool(interval) and after // interval > before // interval
