"""Sentences on whether a run worked, judged by its held-out pairs."""

from __future__ import annotations

from dpo_cli.formatting import format_count
from dpo_cli.paired import MeanEstimate
from dpo_cli.run.events import Evaluated
from dpo_cli.run.held_out_scores import loss_change
from dpo_cli.ui.comparison import ComparedRun
from dpo_cli.ui.significance import difference

_CHANCE = 0.5


def outcome(run: ComparedRun) -> list[str]:
    """Return what the held-out pairs prove about a run; empty before the first step.

    The loss is compared with that of the same pairs before the first step, pair by pair.
    """
    if run.view.held_out is None:
        return ["No pairs were held out, so nothing shows whether the run worked on other pairs."]
    if (change := run.view.held_out_change) is None:
        return []
    sentences = [_loss(*change, loss_change(run.scores, run.start_scores))]
    if run.accuracy is not None:
        share, (low, high) = run.accuracy
        verdict = "which may be chance (0.50)"
        if low > _CHANCE:
            verdict = "better than chance (0.50)"
        elif high < _CHANCE:
            verdict = "worse than chance (0.50)"
        sentences.append(f"Accuracy is {share:.2f} (95 %: {low:.2f} to {high:.2f}), {verdict}.")
    if run.plan is not None:
        sentences += [f"{caveat}." for caveat in run.plan.pairs.caveats()]
    return sentences


def _loss(start: Evaluated, now: Evaluated, change: MeanEstimate | None) -> str:
    before, after = start.metrics["loss"], now.metrics["loss"]
    pairs = f"the loss of {format_count(now.pairs, 'held-out pair')}"
    values = f"from {before:.4f} to {after:.4f}"
    if change is None:
        return f"After training, {pairs} went {values}."
    how = f"{values}: {difference(change, '+.4f')}"
    if not change.is_significant:
        return f"Undecided: {pairs} went {how}."
    if f"{before:.4f}" == f"{after:.4f}":
        return f"Hardly anything changed: {pairs} went {how}."
    if after < before:
        return f"The run worked: {pairs} fell {how}."
    return f"The run did harm: {pairs} rose {how}."
