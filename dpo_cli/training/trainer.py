"""The training loop: Direct Preference Optimization, one window of micro-batches after another."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from dpo_cli.data.batching import Batch, make_batch
from dpo_cli.data.chat import TokenizedPair
from dpo_cli.data.order import Window
from dpo_cli.models.scoring import ResponseScorer, Scores
from dpo_cli.models.zoo import DTYPES, to_disk_names
from dpo_cli.objective.losses import PairScores, score_pairs
from dpo_cli.run.events import Alert, Evaluated, Event, StepDone
from dpo_cli.training.device import process_bytes
from dpo_cli.training.optim import set_learning_rate
from dpo_cli.training.plan import Prepared
from dpo_cli.training.reference import Reference

_SAVING_SHARE = 0.02


class Watch(Protocol):
    """What the loop asks at each step boundary, and tells."""

    def emit(self, event: Event) -> None:
        """Append to the event stream."""
        ...

    def asked(self) -> set[str]:
        """What was asked for since the last call: "save", "stop", "evaluate"."""
        ...

    def not_finite(self, trainer: Trainer, window: Window, losses: Sequence[float]) -> None:
        """Name the pairs of a window whose update must not be made, and keep what shows why.

        Raises:
            DpoError: the run is to stop here.
        """
        ...


@dataclass
class Trainer:
    """A run in progress; `optimizer_step` counts the steps done."""

    prepared: Prepared
    policy: ResponseScorer
    reference: Reference
    held_out_reference: Reference
    optimizer: torch.optim.AdamW
    scaler: torch.amp.GradScaler
    watch: Watch
    save: Callable[[Trainer], None]
    optimizer_step: int = 0

    def train(self) -> bool:
        """Train to the end of the plan, or until asked to stop; saved either way.

        Returns:
            Whether every planned step is done.
        """
        profile, order = self.prepared.profile, self.prepared.order
        rests_until = time.monotonic() + profile.train.save_min_seconds
        if self.optimizer_step == 0:
            self.evaluate()
        for window in order.windows(start=self.optimizer_step):
            before = self.step
            self.watch.emit(self.take_step(window))
            asked = self.watch.asked()
            last = self.optimizer_step == order.optimizer_steps
            if last or "evaluate" in asked or _passed(profile.eval.interval, before, self.step):
                self.evaluate()
            is_rested = time.monotonic() >= rests_until
            due = is_rested and _passed(profile.train.save_interval, before, self.step)
            if last or due or asked & {"save", "stop"}:
                rests_until = self.save_and_rest()
            if "stop" in asked and not last:
                return False
        return True

    def save_and_rest(self) -> float:
        """Save, and say until when (in monotonic seconds) no interval need save again.

        Large states rest longer than `save_min_seconds`: saving takes at most a fiftieth of the
        time, however slow the disk. With 0 every interval saves.
        """
        began = time.monotonic()
        self.save(self)
        ended = time.monotonic()
        least = self.prepared.profile.train.save_min_seconds
        return ended + (max(least, (ended - began) / _SAVING_SHARE) if least else 0.0)

    @property
    def step(self) -> int:
        """Micro-batches done, as the reference script counts."""
        return self.prepared.order.steps_done(self.optimizer_step)

    def take_step(self, window: Window) -> StepDone:
        """One optimizer step: the gradient of a window's micro-batches, clipped, applied.

        Raises:
            DpoError: a loss or gradient is not finite, and the profile says to stop then; the
                weights are as before the step.
        """
        began = time.perf_counter()
        figures = _Figures()
        self.policy.train()
        for indices in window.micro_batches:
            batch = self.batch(self.prepared.pairs, indices)
            pairs, balance = self.score(batch, self.reference.token_logps(indices, batch))
            loss = pairs.losses.mean()
            if balance is not None:
                loss = loss + self.prepared.router_aux_loss_coef * balance
            share = loss / self.prepared.order.accumulation_steps
            self.scaler.scale(share).backward()  # type: ignore[no-untyped-call]
            figures.add(loss, pairs, balance, batch)

        self.scaler.unscale_(self.optimizer)
        parameters = list(self.policy.parameters())
        grad_norm = get_total_norm([p.grad for p in parameters if p.grad is not None])
        losses, metrics = figures.read(grad_norm)
        is_skipped = not math.isfinite(metrics["grad_norm"]) or not all(map(math.isfinite, losses))
        if is_skipped:
            self.explain_skip(window, losses)
        clip_grads_with_norm_(parameters, self.prepared.profile.train.grad_clip, grad_norm)
        learning_rate = self.prepared.learning_rate.at(window.last_step)
        set_learning_rate(self.optimizer, learning_rate)
        if not is_skipped:
            self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        before = self.step
        self.optimizer_step += 1
        if before == 0 or _passed(self.prepared.profile.train.log_interval, before, self.step):
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
            device_bytes=self.prepared.compute.peak_bytes(),
            is_skipped=is_skipped,
        )

    def score(self, batch: Batch, reference: Tensor) -> tuple[PairScores, Tensor | None]:
        """Losses and rewards of a batch, and the balance of the experts where there are any."""
        dpo = self.prepared.profile.dpo
        with self.prepared.compute.autocast():
            scores: Scores = self.policy(batch)
        pairs = score_pairs(
            scores.token_logps, reference, scores.mask, beta=dpo.beta, reduction=dpo.reduction
        )
        return pairs, scores.balance

    def weights_moved(self) -> float:
        """The share of weights whose half-precision value is no longer the checkpoint's."""
        half = DTYPES[self.prepared.profile.export.dtype]
        start = self.prepared.checkpoint.state
        now = to_disk_names(self.policy.model, self.policy.model.state_dict())
        moved = sum(
            int((tensor.to(half) != start[name].to(tensor.device, half)).sum())
            for name, tensor in now.items()
        )
        return moved / self.prepared.checkpoint.parameters

    def batch(self, pairs: Sequence[TokenizedPair], indices: Sequence[int]) -> Batch:
        """The tensors of these pairs, on the device."""
        profile = self.prepared.profile
        return make_batch(
            [pairs[i] for i in indices],
            profile.train.layout,
            max_seq_len=profile.data.max_seq_len,
            pad_id=self.prepared.pad_id,
            share_prompts=not profile.model.dropout,
        ).to(self.prepared.compute.device)

    @torch.no_grad()
    def evaluate(self) -> None:
        """Score the held-out pairs, if there are any, and report."""
        held_out = self.prepared.held_out
        if not held_out:
            return
        began = time.perf_counter()
        self.policy.eval()
        figures = _Figures()
        for indices in chunked(len(held_out), self.prepared.order.batch_size):
            batch = self.batch(held_out, indices)
            pairs, _ = self.score(batch, self.held_out_reference.token_logps(indices, batch))
            figures.add(pairs.losses.mean(), pairs, None, batch)
        _, metrics = figures.read(None)
        self.watch.emit(
            Evaluated(
                step=self.step,
                optimizer_step=self.optimizer_step,
                metrics=metrics,
                pairs=figures.pairs,
                seconds=time.perf_counter() - began,
            )
        )

    def explain_skip(self, window: Window, losses: Sequence[float]) -> None:
        """Tell why no update is made of this window's gradient.

        Under float16 the scaler has a step skipped whose scaled gradients overflow: its work.

        Raises:
            DpoError: the profile has the run stop at what is not a finite number.
        """
        if self.scaler.is_enabled() and all(map(math.isfinite, losses)):
            self.watch.emit(_overflowed(window))
        else:
            self.watch.not_finite(self, window, losses)


class _Figures:
    """Adds up what the micro-batches of a window came to, on the device; read once at its end."""

    def __init__(self) -> None:
        self.pairs = 0
        self.tokens = 0
        self.padding_tokens = 0
        self._losses: list[Tensor] = []
        self._balances: list[Tensor] = []
        self._sums: dict[str, Tensor] = {}

    def add(self, loss: Tensor, pairs: PairScores, balance: Tensor | None, batch: Batch) -> None:
        self.pairs += batch.pairs
        self.tokens += batch.computed_tokens
        self.padding_tokens += batch.padding_tokens
        self._losses.append(loss.detach())
        if balance is not None:
            self._balances.append(balance.detach())
        for name, figure in pairs.sums().items():
            self._sums[name] = self._sums.get(name, 0.0) + figure

    def read(self, grad_norm: Tensor | None) -> tuple[tuple[float, ...], dict[str, float]]:
        """The loss of each micro-batch; the mean over all pairs of every other figure."""
        means = {name: total / self.pairs for name, total in self._sums.items()}
        if self._balances:
            means["balance"] = torch.stack(self._balances).mean()
        if grad_norm is not None:
            means["grad_norm"] = grad_norm
        figures = [*self._losses, *means.values()]
        values = torch.stack([figure.double() for figure in figures]).tolist()
        count = len(self._losses)
        return tuple(values[:count]), dict(zip(means, values[count:], strict=True))


def _overflowed(window: Window) -> Alert:
    return Alert(
        code="float16-overflow",
        message=f"step {window.last_step + 1}: scaled gradients overflowed float16; this update is"
        " skipped and the loss scale halved",
        remedy="a few at the start are normal",
    )


def chunked(count: int, size: int) -> list[tuple[int, ...]]:
    """0 .. count - 1 in consecutive runs of `size`."""
    return [tuple(range(start, min(start + size, count))) for start in range(0, count, size)]


def _passed(interval: int, before: int, after: int) -> bool:
    """Whether a multiple of the interval lies in (before, after]; 0 is no interval."""
    return bool(interval) and after // interval > before // interval
