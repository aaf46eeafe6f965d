"""Alert rules about stability: gradient norm, spikes of the loss, drift from the reference."""

from __future__ import annotations

import math
from statistics import fmean, median

from dpo_cli.alerts.history import WINDOW, RunFacts, RunHistory
from dpo_cli.run.events import Alert

EXPLODED = 3.0
"""Factor between the median gradient norms now and at the start. In runs that learned well it was
1.5 or less; in runs that damaged the model it was 3 to 5."""
VANISHED = 1e-3
"""Share of the largest gradient norm at the start, below which the gradient is noise."""
MEMORIZED = 0.01
"""Share of the first loss, below which the model has memorized the pairs."""
SPIKE_SIGMA = 10.0
"""Standard deviations above the median of the micro-batches before."""
SPIKE_TIMES = 2.0
"""Factor above the first loss. Late in a run the loss is near zero, and any hard pair would be an
outlier otherwise."""

DRIFT_BOUND = 0.5
"""Nats per response token, as half the squared log-ratio: the probability of a typical token has
changed by a factor of e. Runs that learned well stayed below 0.1."""


def gradient(history: RunHistory, facts: RunFacts) -> Alert | None:
    """Report a gradient norm that is much too small or too large.

    The codes are `gradient-vanishing` and `gradient-exploding`.
    """
    if len(history.recent) < WINDOW:
        return None
    norms, now = history.first_values("grad_norm"), median(history.recent_values("grad_norm"))
    loss, first_loss = fmean(history.recent_values("loss")), history.first[0].metrics["loss"]
    # Root mean square of the gradient of one weight. A gradient as small as AdamW's epsilon moves
    # its weight by half a learning rate, a smaller one by less (Kingma and Ba 2015, algorithm 1).
    step, per_weight = history.last.optimizer_step, now / math.sqrt(facts.recipe.parameters)
    if per_weight < facts.adam_epsilon or now < VANISHED * max(norms):
        if loss < MEMORIZED * first_loss:
            return Alert(
                code="gradient-vanishing",
                message=f"step {step}: the gradient norm fell from {norms[0]:.2g} to {now:.1e}, and"
                f" the loss reads {loss:.1e}: the pairs are memorized, and the remaining updates"
                " are noise",
                remedy="Stop here, or train again on more pairs, for fewer epochs, or with a"
                " smaller learning rate.",
            )
        if per_weight < facts.adam_epsilon:
            return Alert(
                code="gradient-vanishing",
                message=f"step {step}: the gradient norm is {now:.1e}, {per_weight:.0e} per weight:"
                f" below AdamW's epsilon of {facts.adam_epsilon:.0e}, so weights move by less than"
                " the learning rate",
                remedy="Raise dpo.beta: the gradient is proportional to it.",
            )
    if not history.is_comparable:
        return None
    first = median(norms)
    if now > EXPLODED * first:
        return Alert(
            code="gradient-exploding",
            message=f"step {step}: the gradient norm grew from {first:.2g} to {now:.2g}: the"
            " weights are far from the starting weights, and each step undoes the previous one",
            remedy="Lower train.learning_rate, or raise dpo.beta. If the norm was high from the"
            " first steps, add a warm-up (train.warmup_iters).",
        )
    return None


def spike(history: RunHistory, facts: RunFacts) -> Alert | None:
    """Report a micro-batch whose loss is an outlier, with the names of its pairs."""
    before = history.earlier_losses
    if len(before) < WINDOW:
        return None
    usual = median(before)
    # 1.4826 times the median absolute deviation estimates the sigma of a normal distribution.
    sigma = 1.4826 * median(abs(loss - usual) for loss in before)
    bound = max(usual + SPIKE_SIGMA * sigma, SPIKE_TIMES * history.first[0].losses[0])
    event = history.last
    worst = max(range(len(event.losses)), key=event.losses.__getitem__)
    if event.losses[worst] <= bound:
        return None
    return Alert(
        code="loss-spike",
        message=f"step {event.optimizer_step}: the loss was {event.losses[worst]:.2f}, after"
        f" {usual:.2f} before, on these pairs: {facts.rows_of(event.optimizer_step, worst)}",
        remedy="Check these rows for swapped sides and damaged text. If they are correct, lower"
        " train.learning_rate.",
    )


def drift(history: RunHistory, facts: RunFacts) -> Alert | None:
    """Report a large KL divergence from the reference, on held-out or on training pairs."""
    if history.held_out is not None and history.held_out.metrics.get("kl", 0.0) > DRIFT_BOUND:
        where, kl = "the held-out pairs", history.held_out.metrics["kl"]
    elif len(values := history.recent_values("kl")) == WINDOW and fmean(values) > DRIFT_BOUND:
        where, kl = "the training pairs", fmean(values)
    else:
        return None
    step = history.recent[-1].optimizer_step if history.recent else 0
    return Alert(
        code="drift",
        message=f"step {step}: on {where} the policy is {kl:.2g} nats a token from the reference"
        f" (KL above {DRIFT_BOUND}): the model forgets what it could do before, whatever loss and"
        " accuracy read",
        remedy="Go back to an earlier checkpoint, or train again with a higher dpo.beta or a"
        " smaller learning rate. Read some answers before you use the model.",
    )
