"""AlertRules about what is learned: does the loss tell, do the weights move, and which way."""

from __future__ import annotations

from statistics import fmean

from dpo_cli.alerts.history import RunFacts, RunHistory
from dpo_cli.profile.recipe import MAX_SATURATION_MARGIN, suggest_lr_and_beta
from dpo_cli.run.events import Alert

DISPLACED_SHARE = 0.25
"""Of the margin's growth: how much the chosen answers must have lost beside it. Where they lose a
little and the rejected ones much, the run does what it should."""

JUDGED_AFTER = 1 / 3
"""Of the planned steps: a loss that has not moved by then, on the larger half of the reach of a
cosine, will not."""
STILL_SHARE = 0.015
"""Of the first loss: a loss so near it has not left it. 0.01 at ln 2."""
MOVED_SHARE = 0.1
"""Of the weights: if fewer have changed, it is they that do not move."""

UNRESOLVED_AFTER = 0.5
"""Of the planned steps; the rest has the smaller learning rates."""
UNRESOLVED_SHARE = 0.05
"""Of the weights: with fewer changed the file can hardly show what was learned. At a learning rate
of 1e-8, where 0.9 of the update is lost in it, 3 to 8 % change in thousands of steps."""


def displacement(history: RunHistory, facts: RunFacts) -> Alert | None:
    """The margin grows, but by making both answers less likely (Razin et al. 2024,
    arXiv:2410.08847): what the rejected ones lose need not go to the chosen ones.
    """
    if not history.is_comparable:
        return None
    chosen, rejected, margin = (
        history.change(f"rewards/{name}") for name in ("chosen", "rejected", "margins")
    )
    if max(chosen, rejected) >= 0 or margin <= 0 or -chosen < DISPLACED_SHARE * margin:
        return None
    now = {
        name: fmean(history.now(f"rewards/{name}")) for name in ("chosen", "rejected", "margins")
    }
    return Alert(
        code="displacement",
        message=f"step {history.last.step}: the margin grows ({now['margins']:+.2g}) while both"
        f" rewards fall (chosen {now['chosen']:+.2g}, rejected {now['rejected']:+.2g}): the good"
        " answers become less likely too, and the probability goes to answers nobody has seen",
        remedy="watch the held-out figures and samples, and stop where they turn; else a shorter"
        " reach, or a higher dpo.beta",
    )


def stuck(history: RunHistory, facts: RunFacts) -> Alert | None:
    """The loss reads what it read at first, and why: `lr-sum-small`, `no-saturation`, or pairs that teach
    nothing, `accuracy-stuck`.
    """
    moved = history.weights_moved_by(JUDGED_AFTER, facts)
    if moved is None:
        return None
    first, now = history.first[0].metrics["loss"], fmean(history.now("loss"))
    if now < first * (1 - STILL_SHARE):
        return None
    is_still = now <= first * (1 + STILL_SHARE)
    has_moved, has_brake = moved >= MOVED_SHARE, facts.saturation_margin <= MAX_SATURATION_MARGIN
    after = f"after {history.last.optimizer_step} of {facts.optimizer_steps} updates"
    if is_still and has_moved and not has_brake:
        return Alert(
            code="no-saturation",
            message=f"the loss reads {now:.4f} {after} although {moved:.0%} of the weights have"
            f" changed: with {facts.reduction} and beta {facts.beta:g} it cannot tell (it would"
            f" push half as hard at {facts.saturation_margin:.2g} nats a token between chosen and"
            " rejected), and the learning rate alone holds the model back",
            remedy=suggest_lr_and_beta(facts.learning_rate, facts.reach),
        )
    if has_moved and (accuracy := history.accuracy) is not None and accuracy <= 0.5:
        return Alert(
            code="accuracy-stuck",
            message=f"{after} {accuracy:.2f} of the pairs are told apart, no more than by tossing a"
            f" coin, with {moved:.0%} of the weights changed: what one batch teaches does not hold"
            " for the next",
            remedy="look at the pairs: is chosen the better answer, do some contradict others? Or"
            " is the reach (the sum of the learning rates) so long that the model breaks?",
        )
    if is_still and not has_moved:
        return Alert(
            code="lr-sum-small",
            message=f"the loss still reads {now:.4f} {after}: a reach of {history.reach:.1e} so"
            f" far, the sum of the learning rates, hardly moves the weights ({moved:.1%} of them"
            f" changed in a {facts.export_dtype} file)",
            remedy=suggest_lr_and_beta(facts.learning_rate, facts.reach),
        )
    return None


def resolution(history: RunHistory, facts: RunFacts) -> Alert | None:
    """What was learned is lost in the rounding of the exported file."""
    moved = history.weights_moved_by(UNRESOLVED_AFTER, facts)
    if moved is None or moved >= UNRESOLVED_SHARE:
        return None
    dtype = facts.export_dtype
    better = "" if dtype == "float32" else 'export.dtype = "float32" keeps it; or '
    return Alert(
        code="below-resolution",
        message=f"after {history.last.optimizer_step} of {facts.optimizer_steps} updates"
        f" {moved:.1%} of the weights have another value in a {dtype} file: what was learned is"
        " smaller than its rounding, and the file will hardly differ from the checkpoint",
        remedy=better + suggest_lr_and_beta(facts.learning_rate, facts.reach),
    )
