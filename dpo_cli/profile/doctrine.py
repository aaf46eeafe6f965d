"""Measured limits of learning rate, loss and held-out pairs, and the values proposed from them.

`dpo init`, the remedies of `dpo check`, alerts and the end of a run take their values from here, so
that no two places disagree. docs/recipes.md has the measurements.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from dpo_cli.formatting import format_count
from dpo_cli.intervals import smallest_share_above_half
from dpo_cli.profile.text import show_value

REDUCTION = "sum"
BETA = 0.1
"""Beta of the proposed loss: a sum, as in the DPO paper. On 246 judged pairs this loss had a higher
accuracy than a mean with beta 5 (0.839 and 0.808), learned less of length alone (0.780 and 0.463 of
the pairs whose rejected answer is longer), and moved the policy less."""

MEASURED_PARAMETERS = 30_000_000
"""Largest model, rounded up, whose learning rates were measured on few pairs."""
MAX_LEARNING_RATE = 5e-6
"""Largest learning rate for models of this size: half of the rate at which one step takes the loss
of its own pairs to about `LOW_LOSS`, because longer answers move further."""
USUAL_LEARNING_RATE = 1e-6
"""Largest learning rate for larger models: usual for them, not measured here."""
LORA_FACTOR = 10
"""Learning rate of adapters, as a multiple of that of full training: usual in the field (TRL's own
commands for DPO have 5e-7 and 5e-6), not measured here."""
MAX_LR_SUM = 1e-3
"""Largest sum of the learning rates over a run: the largest that was measured, on 246 pairs."""

MAX_SATURATION_MARGIN = 1.0
"""Largest useful saturation margin, in nats per token. Runs that learned well end at a margin of
0.02 to 0.3. A model with a margin of 1 already answers gibberish, so a loss that saturates only
there does not limit the training."""
LOW_LOSS = 0.5
"""Loss of pairs right after one step on them below which the step was too large. The first pairs of
measured runs ended at 0.49 to 0.55 with a rate of 1e-5, and at 0.24 to 0.34 with 3e-5."""

MIN_HELD_OUT = 30
"""Held-out pairs below which only a very large effect differs from chance."""
_MAX_HELD_OUT_SHARE = 1 / 3
_SMALL_SHARE, _LARGE_SHARE = 0.1, 0.05
_SMALL_MOST = 100
"""A tenth of the rows is held out up to this number of pairs, then a twentieth if that is more."""

LENGTHS = (256, 512, 1024, 2048)
"""Proposed values of `data.max_seq_len`. Longer pairs are cut: they take most of the time and of
the memory."""
COVERED_SHARE = 0.95
"""Share of the pairs that the proposed length holds completely."""

SAMPLES = 4
"""Held-out prompts to answer at each evaluation: they show a model that repeats itself."""
EVALUATIONS = 5
"""Evaluations during a run."""

# Mean of the cosine schedules, as a factor of the learning rate: 0.1 + 0.5 and 0.1 + 0.45.
MEAN_OF_SCHEDULE = {"minimind2": 0.6, "minimind3": 0.55}


@dataclass(frozen=True)
class Proposal:
    """Values for a run over a number of rows.

    Attributes:
        rows: number of rows, held-out ones included.
        held_out: number of rows to hold out.
        fraction: `eval.fraction` that holds out so many.
        steps: optimizer steps of one epoch over the rest.
        mean: mean of the schedule, as a factor of the learning rate.
        limit: largest learning rate for the size of the model.
        learning_rate: the proposal, with two digits.
    """

    rows: int
    held_out: int
    fraction: float
    steps: int
    mean: float
    limit: float
    learning_rate: float

    @property
    def lr_sum(self) -> float:
        """Sum of the learning rates over the run."""
        return self.steps * self.mean * self.learning_rate

    @property
    def interval(self) -> int:
        """Micro-batches between two evaluations."""
        return max(1, self.steps // EVALUATIONS)


def propose(
    rows: int, batch_size: int, schedule: str, parameters: int | None, *, is_lora: bool = False
) -> Proposal:
    """Propose held-out pairs and a learning rate for one epoch.

    Args:
        rows: number of rows.
        batch_size: pairs of an optimizer step.
        schedule: name of the schedule.
        parameters: size of the model; None if unknown.
        is_lora: adapters are trained instead of all weights.
    """
    held_out = propose_held_out(rows)
    steps = max(1, math.ceil((rows - held_out) / batch_size))
    mean = MEAN_OF_SCHEDULE[schedule]
    return Proposal(
        rows=rows,
        held_out=held_out,
        fraction=held_out_fraction(rows),
        steps=steps,
        mean=mean,
        limit=max_learning_rate(parameters, is_lora=is_lora),
        learning_rate=propose_learning_rate(steps * mean, parameters, is_lora=is_lora),
    )


def propose_held_out(rows: int) -> int:
    """Return the number of rows to hold out: enough to see an effect, but at most a third."""
    usual = max(min(round(_SMALL_SHARE * rows), _SMALL_MOST), round(_LARGE_SHARE * rows))
    return min(max(usual, min(MIN_HELD_OUT, int(_MAX_HELD_OUT_SHARE * rows)), 1), rows - 1)


def held_out_fraction(rows: int) -> float:
    """Return the `eval.fraction` that holds out the proposed number of rows."""
    held_out = propose_held_out(rows)
    # Two digits, or more where two would hold out another number.
    fractions = (round(held_out / rows, digits) for digits in range(2, 18))
    return next(fraction for fraction in fractions if round(fraction * rows) == held_out)


def propose_max_seq_len(lengths: Sequence[int]) -> int:
    """Return the smallest usual length that holds 95 % of the pairs, or the largest.

    Args:
        lengths: tokens of each pair's longer side, of some of the pairs.
    """
    wanted = quantile(lengths, COVERED_SHARE)
    return next((length for length in LENGTHS if length >= wanted), LENGTHS[-1])


def quantile(values: Sequence[int], share: float) -> int:
    """Return the smallest value that is at least as large as this share of the values."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def max_learning_rate(parameters: int | None, *, is_lora: bool = False) -> float:
    """Return the largest learning rate for a model of this size.

    Args:
        parameters: size of the model; None if unknown, which counts as large.
        is_lora: adapters are trained; no rate of theirs was measured, for any size.
    """
    if is_lora:
        return LORA_FACTOR * USUAL_LEARNING_RATE
    is_measured = parameters is not None and parameters <= MEASURED_PARAMETERS
    return MAX_LEARNING_RATE if is_measured else USUAL_LEARNING_RATE


def propose_learning_rate(
    summed_factors: float, parameters: int | None, *, is_lora: bool = False
) -> float:
    """Return the learning rate for a run.

    Args:
        summed_factors: sum of the schedule over all steps, as factors of the learning rate.
        parameters: size of the model; None if unknown.
        is_lora: adapters are trained instead of all weights.
    """
    limit = max_learning_rate(parameters, is_lora=is_lora)
    lr_sum = LORA_FACTOR * MAX_LR_SUM if is_lora else MAX_LR_SUM
    return floor_digits(min(limit, lr_sum / summed_factors))


def floor_digits(value: float) -> float:
    """Round down to two digits."""
    rounded = float(f"{value:.1e}")
    exponent = math.floor(math.log10(value))
    return rounded if rounded <= value else float(f"{rounded - 10.0 ** (exponent - 1):.1e}")


def saturation_margin(beta: float, reduction: str, response_tokens: float) -> float:
    """Return the margin, in nats per token, at which the gradient of the DPO loss halves.

    The gradient is proportional to sigmoid(-u) with u = beta * margin. It is 1/2 at u = 0 and half
    of that, 1/4, at u = ln 3. A sum multiplies the margin per token by `response_tokens`.
    """
    return math.log(3) / (beta * (response_tokens if reduction == "sum" else 1.0))


# --- remedies ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RunRecipe:
    """Values of a run that remedies compare with the proposed ones, and may change.

    Attributes:
        reduction, beta, learning_rate: keys of the profile.
        lr_sum: sum of the learning rates over the run.
        parameters: size of the model.
        optimizer: name of the optimizer; the measured limits are those of AdamW.
        is_lora: adapters are trained instead of all weights.
    """

    reduction: str
    beta: float
    learning_rate: float
    lr_sum: float
    parameters: int
    optimizer: str = "adamw"
    is_lora: bool = False

    @property
    def proposed_rate(self) -> float:
        """Learning rate that is proposed for this run's steps and schedule."""
        factors = self.lr_sum / self.learning_rate
        return propose_learning_rate(factors, self.parameters, is_lora=self.is_lora)

    @property
    def is_proposed(self) -> bool:
        """Return True if loss and learning rate are at most those that `dpo init` proposes."""
        # Skipped rows shorten the schedule a little.
        return (
            self.optimizer == "adamw"
            and self.has_proposed_loss
            and self.learning_rate <= 1.1 * self.proposed_rate
        )

    @property
    def has_proposed_loss(self) -> bool:
        """Return True if the loss is the proposed one."""
        return (self.reduction, self.beta) == (REDUCTION, BETA)


def learn_more(run: RunRecipe) -> str:
    """Return a remedy for a run that hardly moves its weights, or whose loss hardly reacts.

    Loss and learning rate change together: a higher rate alone ruins a model whose loss does not
    saturate.
    """
    if run.optimizer != "adamw":
        return (
            f"Raise train.learning_rate step by step: the rates that dpo init proposes are those of"
            f" AdamW, not of {run.optimizer}."
        )
    rate = run.proposed_rate
    if run.has_proposed_loss and run.learning_rate >= 0.9 * rate:
        return (
            f"These are the values that dpo init proposes: more than {show_value(rate)} is not"
            " known to be safe here. Train on more pairs."
        )
    return (
        f'Set dpo.reduction = "{REDUCTION}", dpo.beta = {BETA:g} and train.learning_rate ='
        f" {show_value(rate)} together, as dpo init proposes. Do not raise the learning rate alone."
    )


def learn_less(run: RunRecipe) -> str:
    """Return a remedy for a run that moved too far: the proposed rate, or a third of its own."""
    rate = run.proposed_rate if run.optimizer == "adamw" else math.inf
    if run.learning_rate > 1.1 * rate:
        return f"Set train.learning_rate = {show_value(rate)}, as dpo init proposes."
    rate = floor_digits(run.learning_rate / 3)
    return f"Set train.learning_rate = {show_value(rate)}, or train on more pairs."


def smaller_rate(run: RunRecipe, safe: float) -> str:
    """Return a remedy for one step that moved its pairs too far.

    Args:
        run: the run.
        safe: learning rate that keeps the loss of these pairs above `LOW_LOSS`.
    """
    rate = min(safe, run.proposed_rate) if run.optimizer == "adamw" else safe
    return f"Set train.learning_rate = {show_value(floor_digits(rate))} or less."


def hold_out_more(held_out: int, rows: int) -> str:
    """Return a remedy for few held-out pairs.

    Args:
        held_out: number of held-out pairs.
        rows: number of all pairs.
    """
    # Skipped rows make a share of all rows a little smaller than proposed.
    if propose_held_out(rows) > 1.2 * held_out:
        return f"Set eval.fraction = {held_out_fraction(rows):g}."
    return "Only more pairs can show more. Judge the answers yourself, too (eval.num_samples)."


def what_held_out_shows(count: int) -> str:
    """Return a sentence about what so few held-out pairs can show, from binomial intervals."""
    share = smallest_share_above_half(count)
    pairs = format_count(count, "held-out pair")
    if share is None:
        return f"{pairs} cannot show anything: not even an accuracy of 1 differs from chance"
    return (
        f"{pairs} distinguish an accuracy of {share:.2f} or more from chance; anything less may be"
        " chance (95 %)"
    )
