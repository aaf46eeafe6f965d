"""Alert rules about learning: the loss, the share of changed weights, and the direction."""

from __future__ import annotations

import math
from statistics import fmean

from dpo_cli.alerts.history import RunFacts, RunHistory
from dpo_cli.formatting import format_percent
from dpo_cli.intervals import wilson_interval
from dpo_cli.profile.doctrine import MAX_SATURATION_MARGIN, learn_more
from dpo_cli.run.events import Alert

CHANCE_SHARE = 0.95
"""Smallest share of the loss of random guessing, ln V, at which weights and tokenizer do not fit.

A model that scores within 5 % of it has not been trained on such token ids."""
DISPLACED_SHARE = 0.25
"""Displacement: loss of the chosen reward, as a share of the margin's growth. A small loss beside a
large one of the rejected reward is intended."""

STUCK_AFTER = 1 / 3
"""Share of the planned steps after which the loss is checked. With a cosine schedule, more than
half of the lr_sum is used by then, so a loss that has not moved will not."""
STILL_SHARE = 0.015
"""A loss within this share of the first loss has not moved (0.01 at ln 2)."""
MOVED_SHARE = 0.1
"""Share of changed weights below which the weights are the reason that the loss does not move."""

USELESS_ACCURACY = 0.55
"""Accuracy that hardly differs from chance. The alert needs an interval that ends below it, which
takes about 400 pairs at an accuracy of 0.5: on fewer pairs a run that learns well may read 0.48."""

RESOLUTION_AFTER = 0.5
"""Share of the planned steps; the remaining ones have smaller learning rates."""
RESOLUTION_SHARE = 0.05
"""Share of changed weights below which the file hardly contains what was learned. At a learning
rate of 1e-8, which loses 0.9 of the update in the file, 3 to 8 % change in thousands of steps."""


def guessing(history: RunHistory, facts: RunFacts) -> Alert | None:
    """Report weights that score no better than random guessing before they are trained."""
    nats = _nats_at_start(history, facts)
    chance = math.log(facts.vocab_size)
    if nats is None or nats < CHANCE_SHARE * chance:
        return None
    return Alert(
        code="tokenizer-mismatch",
        message=f"before training the model scores {nats:.2f} nats per token of the chosen answers;"
        f" random guessing would score ln {facts.vocab_size:,} = {chance:.2f}: the weights do not"
        " fit this tokenizer, or are no language model",
        remedy="Stop the run, and set model.tokenizer to the tokenizer with which these weights"
        " were trained. dpo check measures it before a run.",
    )


def _nats_at_start(history: RunHistory, facts: RunFacts) -> float | None:
    """Return the loss per token of the chosen answers before the first update, if it is known."""
    if history.held_out is not None and history.held_out.optimizer_step == 0:
        logp = history.held_out.metrics.get("token_logps/chosen")
    elif facts.recipe.reduction == "mean" and history.first and history.last.optimizer_step == 1:
        logp = history.last.metrics.get("logps/chosen")
    else:
        return None
    return None if logp is None else -logp


def displacement(history: RunHistory, facts: RunFacts) -> Alert | None:
    """Report a margin that grows although both answers become less likely.

    The probability that rejected answers lose need not go to the chosen ones (Razin et al. 2024,
    arXiv:2410.08847).
    """
    if not history.is_comparable:
        return None
    chosen, rejected, margin = (
        history.change(f"rewards/{name}") for name in ("chosen", "rejected", "margins")
    )
    if max(chosen, rejected) >= 0 or margin <= 0 or -chosen < DISPLACED_SHARE * margin:
        return None
    now = {
        name: fmean(history.recent_values(f"rewards/{name}"))
        for name in ("chosen", "rejected", "margins")
    }
    return Alert(
        code="displacement",
        message=f"step {history.last.optimizer_step}: the margin grows ({now['margins']:+.2g})"
        f" while both rewards fall (chosen {now['chosen']:+.2g}, rejected {now['rejected']:+.2g}):"
        " the chosen answers become less likely too, and the probability goes to answers outside"
        " the data",
        remedy="Watch the held-out metrics and samples, and stop when they get worse. Next time,"
        " use a smaller learning rate or a higher dpo.beta.",
    )


def stuck(history: RunHistory, facts: RunFacts) -> Alert | None:
    """Report a loss that has not fallen, with the reason.

    `lr-sum-small`: the weights hardly changed. `no-saturation`: they changed, but the loss does not
    react. `accuracy-stuck`: they changed, but the pairs teach nothing.
    """
    moved = history.weights_moved_after(STUCK_AFTER, facts)
    if moved is None:
        return None
    first, now = history.first[0].metrics["loss"], fmean(history.recent_values("loss"))
    if now < first * (1 - STILL_SHARE):
        return None
    is_still = now <= first * (1 + STILL_SHARE)
    has_moved = moved >= MOVED_SHARE
    saturates = facts.saturation_margin <= MAX_SATURATION_MARGIN
    after = f"after {history.last.optimizer_step} of {facts.optimizer_steps} updates"
    if is_still and has_moved and not saturates:
        return Alert(
            code="no-saturation",
            message=f"the loss reads {now:.4f} {after} although {format_percent(moved, 0)} of"
            f" the weights have changed: with {facts.recipe.reduction} and beta"
            f" {facts.recipe.beta:g} it hardly reacts (its gradient halves at a margin of"
            f" {facts.saturation_margin:.2g} nats a token), so only the learning rate limits how"
            " far the model moves",
            remedy=learn_more(facts.recipe),
        )
    if has_moved and (accuracy := history.accuracy):
        share, pairs = accuracy
        low, high = wilson_interval(share, pairs)
        if low <= 0.5 and high < USELESS_ACCURACY:
            return Alert(
                code="accuracy-stuck",
                message=f"{after} the accuracy of the last {pairs:,} pairs is {share:.2f} (95 %:"
                f" {low:.2f} to {high:.2f}), no better than chance, although"
                f" {format_percent(moved, 0)} of the weights have changed: the pairs have"
                " nothing in common to learn",
                remedy="Check the pairs: is chosen the better answer, do some pairs contradict"
                " others? If they are correct, lower train.learning_rate: the lr_sum may be so"
                " large that the model breaks.",
            )
    if is_still and not has_moved:
        return Alert(
            code="lr-sum-small",
            message=f"the loss still reads {now:.4f} {after}: an lr_sum (sum of the learning rates)"
            f" of {history.lr_sum:.1e} so far hardly moves the weights"
            f" ({format_percent(moved, 1)} of them changed in a {facts.export_dtype} file)",
            remedy=learn_more(facts.recipe),
        )
    return None


def resolution(history: RunHistory, facts: RunFacts) -> Alert | None:
    """Report an update that is lost when the weights are rounded for the exported file."""
    moved = history.weights_moved_after(RESOLUTION_AFTER, facts)
    if moved is None or moved >= RESOLUTION_SHARE or facts.keeps_small_updates:
        return None
    dtype = facts.export_dtype
    better = "" if dtype == "float32" else 'Set export.dtype = "float32" to keep the update. '
    return Alert(
        code="below-resolution",
        message=f"after {history.last.optimizer_step} of {facts.optimizer_steps} updates"
        f" {format_percent(moved, 1)} of the weights have another value in a {dtype} file: the"
        " update is smaller than the rounding, so the file will hardly differ from the starting"
        " weights",
        remedy=better + learn_more(facts.recipe),
    )
