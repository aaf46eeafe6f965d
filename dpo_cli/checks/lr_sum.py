"""Whether the run will move the weights, and what stops it: reach and brake.

AdamW divides each gradient by its own size: in an update a weight moves by about the learning rate,
whatever the loss (Kingma and Ba 2015, section 2.1). So the learning rates of a run, added up, say
how far a weight can get, its *reach*; and whether the loss ever stops pushing, its *brake*, is
another matter.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dpo_cli.checks.reporter import Reporter
from dpo_cli.checks.trial_trainer import TrialTrainer, modest_micro_batch
from dpo_cli.data.sampler import GlobalBatch
from dpo_cli.formatting import format_rate
from dpo_cli.models.loading import to_disk_names
from dpo_cli.profile.recipe import MAX_SATURATION_MARGIN, suggest_lr_and_beta
from dpo_cli.training.inputs import RunInputs

_DIGITS = {torch.float16: (11, -24), torch.bfloat16: (8, -133), torch.float32: (24, -149)}
"""Of each format: bits of the mantissa, and the exponent of its smallest number."""
_AT_ONCE = 1 << 20
_LITTLE = 0.5
"""Of the weights: a file that cannot show more of what was learned is worth a word."""


@dataclass(frozen=True)
class LrSum:
    """How far a run can move weights.

    Attributes:
        reach: the sum of the learning rates of all updates.
        largest_rate: the largest of them.
        changed: of each file format the largest share of the weights whose value can change.
        still: the share of the weights that no single update can move, even in float32.
    """

    reach: float
    largest_rate: float
    changed: dict[str, float]
    still: float


def measure_lr_sum(inputs: RunInputs) -> LrSum:
    """How far the weights of the checkpoint can move, and where that shows."""
    rates = [inputs.learning_rate.at(step) for step in inputs.order.last_steps]
    reach, largest = sum(rates), max(rates)
    changed = {str(dtype).removeprefix("torch."): 0 for dtype in _DIGITS}
    still = total = 0
    for weights in inputs.weights.state.values():
        total += weights.numel()
        for begin in range(0, weights.numel(), _AT_ONCE):
            some = weights.flatten()[begin : begin + _AT_ONCE]
            for dtype in _DIGITS:
                distance = distance_to_change(some, dtype)
                changed[str(dtype).removeprefix("torch.")] += int((distance < reach).sum())
                if dtype == torch.float32:
                    still += int((distance >= largest).sum())
    return LrSum(
        reach,
        largest,
        {name: number / total for name, number in changed.items()},
        still / total,
    )


def distance_to_change(weights: Tensor, dtype: torch.dtype) -> Tensor:
    """(...) float64: how far each weight must move for its value in `dtype` to be another one.

    Half of the spacing of `dtype` at that weight, where the weight itself is a value of `dtype`;
    at a power of two a quarter, since the numbers below lie closer.
    """
    bits, smallest = _DIGITS[dtype]
    sizes = weights.double().abs()
    rounded = weights.to(dtype).double().abs()
    mantissa, exponent = torch.frexp(rounded)
    spacing = torch.where(rounded == 0, smallest, (exponent - bits).clamp(min=smallest))
    above = torch.ldexp(torch.ones_like(rounded), spacing)
    below = torch.where((mantissa == 0.5) & (spacing > smallest), above / 2, above)
    return torch.minimum(rounded + above / 2 - sizes, sizes - (rounded - below / 2))


def check_lr_sum(reporter: Reporter, inputs: RunInputs) -> LrSum:
    """How far weights can get, how much of it the exported file can show, and what slows it."""
    found = measure_lr_sum(inputs)
    dtype = inputs.export_dtype
    others = ", ".join(
        f"{share:.0%} in {name}" for name, share in found.changed.items() if name != dtype
    )
    message = (
        f"reach {format_rate(found.reach)}, the sum of the learning rates of"
        f" {inputs.order.optimizer_steps:,} updates: at most {found.changed[dtype]:.0%} of the"
        f" weights change in a {dtype} file ({others})"
    )
    if found.still >= 0.01 and not inputs.profile.train.kahan_summation:
        message += (
            f"; {found.still:.0%} of the weights are so large that even in float32 no single update"
            " moves them"
        )
    if found.changed[dtype] >= _LITTLE:
        reporter.ok("reach", "train.learning_rate", message)
    else:
        remedy = proposal(inputs)
        if (inputs.saturation_margin or 0.0) > MAX_SATURATION_MARGIN:
            remedy = "see no-saturation, below: the learning rate and beta together"
        reporter.warn("lr-sum-small", "train.learning_rate", message, remedy)
    _note_brake(reporter, inputs, found)
    return found


def proposal(inputs: RunInputs) -> str:
    """A learning rate and a beta that belong together, for this many updates."""
    reach = sum(inputs.learning_rate.at(step) for step in inputs.order.last_steps)
    return suggest_lr_and_beta(inputs.learning_rate.peak, reach)


def check_update(reporter: Reporter, trial: TrialTrainer) -> None:
    """Make one real update, and see whether it does what reach and brake say."""
    inputs, trainer = trial.inputs, trial.trainer
    indices = modest_micro_batch(inputs)
    # After a warm-up, if there is one.
    step = max(range(inputs.order.micro_batches), key=inputs.learning_rate.at)
    done, _ = trial.step(GlobalBatch(0, step, (indices,)))
    if done.is_skipped:
        return  # told by its gradient
    rate = done.learning_rate
    now = to_disk_names(trainer.policy.model, trainer.policy.model.state_dict())
    moved = total = 0
    distance = largest = 0.0
    for name, start in inputs.weights.state.items():
        change = (now[name].cpu().float() - start.float()).abs()
        moved += int((change > 0).sum())
        total += change.numel()
        distance += change.sum(dtype=torch.float64).item()
        largest = max(largest, change.max().item())
    batch = inputs.batches.make_batch(inputs.pairs, indices)
    with torch.no_grad():
        pairs, _ = trainer.score(batch, trainer.reference.token_logps(indices, batch))
    message = (
        f"one real update at {format_rate(rate)} moved {moved / total:.0%} of the float32 weights,"
        f" by {distance / total / rate:.2f} of the learning rate in the mean and"
        f" {largest / rate:.1f} at most; {done.metrics['weights_moved']:.1%} in"
        f" {inputs.export_dtype}. Loss of its"
        f" pairs: {done.metrics['loss']:.4f} before, {pairs.losses.mean().item():.4f} after"
    )
    # What the weights cannot hold is not lost where updates are kahan_summation.
    if moved >= _LITTLE * total or inputs.profile.train.kahan_summation:
        reporter.ok("update", "", message)
        return
    reporter.warn("update-lost", "", message, proposal(inputs))


def _note_brake(reporter: Reporter, inputs: RunInputs, found: LrSum) -> None:
    dpo, gap = inputs.profile.dpo, inputs.saturation_margin
    if gap is None:
        return
    halved = (
        f"{dpo.reduction} x beta {dpo.beta:g}: the loss pushes half as hard where chosen and"
        f" rejected are {gap:.2g} nats a token apart"
    )
    if gap <= MAX_SATURATION_MARGIN:
        reporter.ok("brake", "dpo.beta", halved)
        return
    chance = math.log(inputs.weights.architecture.vocab_size)
    reporter.warn(
        "no-saturation",
        "dpo.beta",
        f"{halved} (blind guessing costs {chance:.1f}): no brake but the reach of"
        f" {format_rate(found.reach)}; the loss will read {math.log(2):.3f} even if weights move",
        proposal(inputs),
    )
