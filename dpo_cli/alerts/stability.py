"""AlertRules about how it moves: gradients, spikes of the loss, drift from the reference."""

from __future__ import annotations

import math
from statistics import fmean, median

from dpo_cli.alerts.history import WINDOW, RunFacts, RunHistory
from dpo_cli.run.events import Alert

EXPLODED = 3.0
"""Times the first steps' median gradient norm, as a median: in runs that learned well it rose by
1.5 at most, in those that lost what they knew by 3 to 5."""
VANISHED = 1e-3
"""Of the first steps' largest gradient norm: nothing is left that the loss would push with."""
BY_HEART = 0.01
"""Of the first loss: no pair is in doubt any more."""
ADAM_EPSILON = 1e-8
"""torch's default: a gradient as small moves its weight by half a learning rate, smaller ones by
ever less (Kingma and Ba 2015, algorithm 1)."""

SPIKE_SIGMA = 10.0
"""Standard deviations above the median of the micro-batches before."""
SPIKE_TIMES = 2.0
"""Times the first loss, at least: late in a run, where the loss is near zero, any hard pair stands
out."""

DRIFT_BOUND = 0.5
"""Nats a response token, as half the squared log-ratio: the probability of a typical token has
changed by a factor of e. Runs that learned well stayed below 0.1."""


def gradient(history: RunHistory, facts: RunFacts) -> Alert | None:
    """Its norm is out of all proportion: `gradient-vanishing` or `gradient-exploding`."""
    if len(history.recent) < WINDOW:
        return None
    norms, now = history.at_first("grad_norm"), median(history.now("grad_norm"))
    loss, first_loss = fmean(history.now("loss")), history.first[0].metrics["loss"]
    step, a_weight = history.last.step, now / math.sqrt(facts.parameters)
    if a_weight < ADAM_EPSILON or now < VANISHED * max(norms):
        if loss < BY_HEART * first_loss:
            return Alert(
                code="gradient-vanishing",
                message=f"step {step}: the gradient's norm fell from {norms[0]:.2g} to {now:.1e},"
                f" and the loss reads {loss:.1e}: these pairs are known by heart, and what AdamW"
                " still moves is noise",
                remedy="stop here, or train again on more pairs, for fewer epochs, or with a"
                " shorter reach",
            )
        if a_weight < ADAM_EPSILON:
            return Alert(
                code="gradient-vanishing",
                message=f"step {step}: the gradient's norm is {now:.1e}, {a_weight:.0e} a weight:"
                f" below AdamW's epsilon of {ADAM_EPSILON:.0e}, so that weights move by less than"
                " the learning rate",
                remedy="raise dpo.beta: the gradient is proportional to it",
            )
    if not history.is_comparable:
        return None
    first = median(norms)
    if now > EXPLODED * first:
        return Alert(
            code="gradient-exploding",
            message=f"step {step}: the gradient's norm grew from {first:.2g} to {now:.2g}: the"
            " weights are far from where they began, and each step undoes the one before",
            remedy="lower train.learning_rate, or raise dpo.beta; a warm-up (train.warmup_iters)"
            " helps where it began at once",
        )
    return None


def spike(history: RunHistory, facts: RunFacts) -> Alert | None:
    """A micro-batch's loss stands far out of those before; its pairs are named."""
    before = history.earlier_losses
    if len(before) < WINDOW:
        return None
    usual = median(before)
    sigma = 1.4826 * median(abs(loss - usual) for loss in before)  # of a normal distribution
    bound = max(usual + SPIKE_SIGMA * sigma, SPIKE_TIMES * history.first[0].losses[0])
    event = history.last
    worst = max(range(len(event.losses)), key=event.losses.__getitem__)
    if event.losses[worst] <= bound:
        return None
    return Alert(
        code="loss-spike",
        message=f"step {event.step}: a loss of {event.losses[worst]:.2f}, where those before were"
        f" {usual:.2f}, of these pairs: {facts.rows_of(event.optimizer_step, worst)}",
        remedy="look at these rows: swapped sides, or damaged text? If they are sound, the learning"
        " rate is too high",
    )


def drift(history: RunHistory, facts: RunFacts) -> Alert | None:
    """The policy is far from the reference, on the held-out pairs or on those it trains on."""
    if history.held_out is not None and history.held_out.metrics.get("kl", 0.0) > DRIFT_BOUND:
        where, kl = "the held-out pairs", history.held_out.metrics["kl"]
    elif len(figures := history.now("kl")) == WINDOW and fmean(figures) > DRIFT_BOUND:
        where, kl = "these pairs", fmean(figures)
    else:
        return None
    step = history.recent[-1].step if history.recent else 0
    return Alert(
        code="drift",
        message=f"step {step}: on {where} the policy is {kl:.2g} nats a token from the reference"
        f" (KL, beyond {DRIFT_BOUND}): it forgets what it knew, whatever loss and accuracy read",
        remedy="go back to an earlier state, or train again with a higher dpo.beta or a shorter"
        " reach; read what it answers before using it",
    )
