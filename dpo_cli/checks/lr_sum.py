"""Check of how far the learning rates can move the weights, and whether the loss saturates.

AdamW divides each gradient by its own magnitude, so that one step moves a weight by about the
learning rate, whatever the loss (Kingma and Ba 2015, section 2.1). The sum of the learning rates of
a run (`lr_sum`) therefore bounds how far a weight can move. Saturation is independent of it: the
margin at which the gradient of the loss shrinks.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dpo_cli.checks.reporter import Reporter
from dpo_cli.checks.trial_trainer import TrialTrainer, small_micro_batch
from dpo_cli.data.batching import Batch
from dpo_cli.data.sampler import GlobalBatch
from dpo_cli.formatting import format_count, format_percent, format_rate
from dpo_cli.profile.doctrine import (
    LOW_LOSS,
    MAX_SATURATION_MARGIN,
    learn_more,
    smaller_rate,
)
from dpo_cli.training.inputs import RunInputs
from dpo_cli.training.setup import make_scorer
from dpo_cli.training.trainer import Trainer

_DIGITS = {torch.float16: (11, -24), torch.bfloat16: (8, -133), torch.float32: (24, -149)}
"""Bits of the mantissa, and exponent of the smallest (subnormal) number, by dtype."""
_CHUNK = 1 << 20
_SAFETY = 0.8
"""Factor of a proposed step, because other pairs of the data may react more."""
_MIN_CHANGED_SHARE = 0.5
"""Share of the weights that must be able to change; a file that shows less of the training is worth
a warning."""


@dataclass(frozen=True)
class LrSum:
    """Sum of the learning rates of a run, and how many weights it can change.

    Attributes:
        total: sum over all steps.
        largest_rate: learning rate of the largest step.
        changed: upper bound, by dtype of the file, on the share of weights whose value changes.
        unmovable: share of the weights that no single step can change, not even in float32.
    """

    total: float
    largest_rate: float
    changed: dict[str, float]
    unmovable: float


def measure_lr_sum(inputs: RunInputs) -> LrSum:
    """Compute how many of the starting weights a run can change in each dtype."""
    lr_sum = inputs.current_recipe.lr_sum
    largest = max(map(inputs.learning_rate.at, inputs.order.last_steps))
    changed = {str(dtype).removeprefix("torch."): 0 for dtype in _DIGITS}
    unmovable = parameters = 0
    for weights in inputs.weights.state.values():
        parameters += weights.numel()
        # In chunks: the distances are float64, four times the size of float16 weights.
        for begin in range(0, weights.numel(), _CHUNK):
            chunk = weights.flatten()[begin : begin + _CHUNK]
            for dtype in _DIGITS:
                distance = distance_to_change(chunk, dtype)
                changed[str(dtype).removeprefix("torch.")] += int((distance < lr_sum).sum())
                if dtype == torch.float32:
                    unmovable += int((distance >= largest).sum())
    return LrSum(
        lr_sum,
        largest,
        {name: number / parameters for name, number in changed.items()},
        unmovable / parameters,
    )


def distance_to_change(weights: Tensor, dtype: torch.dtype) -> Tensor:
    """Compute how far each weight must move until it rounds to another value of `dtype`.

    The distance is half of the spacing of `dtype` at the weight if the weight is a value of
    `dtype`. At a power of two it is a quarter, because the smaller neighbors are closer.

    Args:
        weights: float tensor of any shape.

    Returns:
        float64 tensor of the same shape.
    """
    bits, smallest = _DIGITS[dtype]
    magnitude = weights.double().abs()
    rounded = weights.to(dtype).double().abs()
    # rounded = mantissa * 2**exponent with a mantissa in [0.5, 1): the spacing is 2**(exponent -
    # bits), and 2**smallest for subnormal numbers and zero.
    mantissa, exponent = torch.frexp(rounded)
    spacing = torch.where(rounded == 0, smallest, (exponent - bits).clamp(min=smallest))
    above = torch.ldexp(torch.ones_like(rounded), spacing)
    below = torch.where((mantissa == 0.5) & (spacing > smallest), above / 2, above)
    return torch.minimum(rounded + above / 2 - magnitude, magnitude - (rounded - below / 2))


def check_lr_sum(reporter: Reporter, inputs: RunInputs) -> LrSum:
    """Report how many weights can change in the exported file, and where the loss saturates."""
    if inputs.profile.lora.is_on:
        what = "of an adapter: its product with the input changes the weights"
        return _without_shares(reporter, inputs, what)
    if (optimizer := inputs.profile.train.optimizer) != "adamw":
        what = f"of {optimizer}, whose updates have other sizes than the learning rate"
        if optimizer == "adamw8bit":
            what = "of adamw8bit, whose updates are about those of AdamW, but rounded"
        return _without_shares(reporter, inputs, what)
    lr_sum = measure_lr_sum(inputs)
    dtype = inputs.export_dtype
    others = ", ".join(
        f"{format_percent(share, 0)} in {name}"
        for name, share in lr_sum.changed.items()
        if name != dtype
    )
    message = (
        f"lr_sum {format_rate(lr_sum.total)} over"
        f" {format_count(inputs.order.optimizer_steps, 'step')}: at most"
        f" {format_percent(lr_sum.changed[dtype], 0)} of the weights change in a {dtype} file"
        f" ({others})"
    )
    if lr_sum.unmovable >= 0.01 and not inputs.profile.train.kahan_summation:
        message += (
            f"; {format_percent(lr_sum.unmovable, 0)} of the weights are so large that no single"
            " step changes them, even in float32"
        )
    is_kept = inputs.export_rounding == "stochastic"
    if is_kept:
        message += "; stochastic rounding keeps the update on average"
    if is_kept or lr_sum.changed[dtype] >= _MIN_CHANGED_SHARE:
        reporter.ok("lr-sum", "train.learning_rate", message)
    else:
        remedy = learn_more(inputs.current_recipe)
        if (inputs.saturation_margin or 0.0) > MAX_SATURATION_MARGIN:
            remedy = "Change the learning rate and beta together; see no-saturation below."
        reporter.warn("lr-sum-small", "train.learning_rate", message, remedy)
    _check_saturation(reporter, inputs)
    return lr_sum


def _without_shares(reporter: Reporter, inputs: RunInputs, what: str) -> LrSum:
    """Report the learning rates where nothing limits how far they move a weight."""
    total, steps = inputs.current_recipe.lr_sum, inputs.order.optimizer_steps
    largest = max(map(inputs.learning_rate.at, inputs.order.last_steps))
    reporter.ok(
        "lr-sum",
        "train.learning_rate",
        f"lr_sum {format_rate(total)} over {format_count(steps, 'step')}, {what}, so no share of"
        " the weights that change is foretold",
    )
    _check_saturation(reporter, inputs)
    return LrSum(total, largest, {}, 0.0)


def check_update(reporter: Reporter, trial: TrialTrainer) -> None:
    """Take one real step, and check that it changes neither too little nor too much.

    It should change each weight by about the learning rate, and the loss of its own pairs a little:
    a step that takes the loss from ln 2 below `LOW_LOSS` changes the model too much.
    """
    inputs, trainer = trial.inputs, trial.trainer
    indices = small_micro_batch(inputs)
    starts = inputs.trainable.state_before(trainer.policy.model)
    # The micro-batch with the largest learning rate: after the warm-up, if there is one.
    step = max(range(inputs.order.micro_batches), key=inputs.learning_rate.at)
    done, _ = trial.step(GlobalBatch(0, step, (indices,)))
    if done.is_skipped:
        return  # the check of the gradients has reported it
    rate = done.learning_rate
    state = inputs.trainable.state(trainer.policy.model)
    moved = parameters = 0
    distance = largest = 0.0
    for name, start in starts.items():
        change = (state[name].cpu().float() - start.float()).abs()
        moved += int((change > 0).sum())
        parameters += change.numel()
        # In float64: a float32 sum of millions of tiny changes would lose most of them.
        distance += change.sum(dtype=torch.float64).item()
        largest = max(largest, change.max().item())
    batch = inputs.batches.make_batch(inputs.pairs, indices)
    with torch.no_grad():
        reference_logps = trainer.reference.token_logps(indices, batch)
    after = _loss(trainer, batch, reference_logps)
    what = "the adapter's float32 weights" if inputs.profile.lora.is_on else "the float32 weights"
    message = (
        f"one real step at {format_rate(rate)} changed {format_percent(moved / parameters, 0)}"
        f" of {what}, by {distance / parameters / rate:.2f} of the learning rate on"
        f" average and {largest / rate:.1f} at most;"
        f" {format_percent(done.metrics['weights_moved'], 1)} in {inputs.export_dtype}."
        f" Loss of these pairs: {done.metrics['loss']:.4f} before, {after:.4f} after"
    )
    # Other losses than DPO's own have other values.
    if inputs.saturation_margin is not None and after < LOW_LOSS:
        pairs = sum(map(len, next(iter(inputs.order.global_batches())).micro_batches))
        if len(indices) < pairs and inputs.current_recipe.is_proposed:
            # Fewer pairs share the update, so that each of them moves further than in the run.
            message += (
                f". The trial has {len(indices)} of the {pairs} pairs of a step, so it moves them"
                " further than the run will"
            )
            reporter.ok("update", "", message)
            return

        def loss_at(share: float) -> float:
            # The first step of AdamW is proportional to its learning rate.
            between = {
                name: torch.lerp(start.float(), state[name].cpu().float(), share)
                for name, start in starts.items()
            }
            policy = make_scorer(inputs, inputs.trainable.at(between))
            return _loss(replace(trainer, policy=policy), batch, reference_logps)

        safe = safe_share(after, loss_at) * inputs.learning_rate.peak
        remedy = smaller_rate(inputs.current_recipe, safe)
        message = (
            f"one step takes the loss of its own pairs below {LOW_LOSS:g}, which changes the model"
            f" too much: {message}"
        )
        reporter.warn("update-large", "train.learning_rate", message, remedy)
        return
    # Kahan summation keeps what the float32 weights cannot represent.
    if moved >= _MIN_CHANGED_SHARE * parameters or inputs.profile.train.kahan_summation:
        reporter.ok("update", "", message)
        return
    reporter.warn("update-lost", "", message, learn_more(inputs.current_recipe))


def safe_share(loss: float, loss_at: Callable[[float], float]) -> float:
    """Return the share of a step that leaves the loss of its own pairs at `LOW_LOSS` or above.

    Args:
        loss: mean DPO loss of the pairs after the whole step.
        loss_at: measures this loss after a share of the step.
    """
    # The loss is -log sigmoid(u), and u = 0 before the step. To first order u is proportional to
    # the step; where the first share is still too large, the measured losses correct it.
    share = 1.0
    while loss < LOW_LOSS:
        share *= _SAFETY * _logit(LOW_LOSS) / _logit(loss)
        loss = loss_at(share)
    return share


def _logit(loss: float) -> float:
    """Return u with -log sigmoid(u) = loss, at most 700."""
    return -math.log(math.expm1(max(loss, math.exp(-700))))


@torch.no_grad()
def _loss(trainer: Trainer, batch: Batch, reference_logps: Tensor) -> float:
    pairs, _ = trainer.score(batch, reference_logps)
    return pairs.losses.mean().item()


def _check_saturation(reporter: Reporter, inputs: RunInputs) -> None:
    dpo, margin = inputs.profile.dpo, inputs.saturation_margin
    if margin is None:
        return
    message = (
        f"{dpo.reduction} x beta {dpo.beta:g}: the gradient halves once chosen and rejected differ"
        f" by {margin:.2g} nats per token"
    )
    if margin <= MAX_SATURATION_MARGIN:
        reporter.ok("saturation", "dpo.beta", message)
        return
    chance = math.log(inputs.weights.architecture.vocab_size)
    reporter.warn(
        "no-saturation",
        "dpo.beta",
        f"{message} (random guessing scores {chance:.1f}), so the loss never saturates and reads"
        f" {math.log(2):.3f} even if weights change",
        learn_more(inputs.current_recipe),
    )
