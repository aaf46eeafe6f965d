"""Sentences on whether a run worked, judged by its held-out pairs."""

from __future__ import annotations

from collections.abc import Mapping

from dpo_cli.formatting import format_count
from dpo_cli.paired import MeanEstimate
from dpo_cli.run.events import Completed, Evaluated
from dpo_cli.run.held_out_scores import loss_change
from dpo_cli.run.plan import part_of
from dpo_cli.ui.comparison import ComparedRun
from dpo_cli.ui.significance import difference

_CHANCE = 0.5
ALL = "all"
_MOSTLY = 2 / 3
"""Share of pairs above which an answer that is longer, or shorter, is a rule."""


def outcome(run: ComparedRun) -> list[str]:
    """Return what the held-out pairs prove about a run; empty before the first step.

    The loss is compared with that of the same pairs before the first step, pair by pair. Only of a
    completed run it says that the run worked or did harm.
    """
    if run.view.held_out is None:
        return ["No pairs were held out, so nothing shows whether the run worked on other pairs."]
    if (change := run.view.held_out_change) is None:
        return []
    sentences = [_loss(*change, loss_change(run.scores, run.start_scores), _progress(run))]
    if run.accuracy is not None:
        share, (low, high) = run.accuracy
        verdict = "which may be chance (0.50)"
        if low > _CHANCE:
            verdict = "better than chance (0.50)"
        elif high < _CHANCE:
            verdict = "worse than chance (0.50)"
        sentences.append(f"Accuracy is {share:.2f} (95 %: {low:.2f} to {high:.2f}), {verdict}.")
    start, now = change
    if now.metrics["loss"] < start.metrics["loss"] and (note := length_note(now.groups)):
        sentences.append(f"{note}.")
    if (sampled := run.view.sampled) is not None and sampled.step > start.step:
        answers = sampled.samples
        if answers and all(each["policy"] == each["reference"] for each in answers):
            sentences.append(
                f"All sampled answers ({len(answers)}) are word for word those of the reference."
            )
    if run.plan is not None:
        sentences += [f"{caveat}." for caveat in run.plan.pairs.caveats()]
    return sentences


def length_note(groups: Mapping[str, Mapping[str, float]]) -> str:
    """Return a clause if most chosen answers are longer, or shorter, than rejected; else "".

    Length alone distinguishes such pairs, so that a gain on them may be a preference for it.

    Args:
        groups: figures of the held-out pairs, see `Evaluated.groups`.
    """
    pairs = groups.get(ALL, {}).get("pairs", 0)
    for group, other in (("chosen longer", "longer"), ("rejected longer", "shorter")):
        part = groups.get(f"length/{group}", {}).get("pairs", 0)
        if part > _MOSTLY * pairs:
            return (
                f"Chosen is the {other} answer in {part_of(int(part), int(pairs))} pairs: part of"
                " the gain may be length (compare the groups by length)"
            )
    return ""


def _progress(run: ComparedRun) -> str:
    """Return how far a run is that is not completed, for example "step 6 of 33"; else ""."""
    if isinstance(run.view.ending, Completed) or run.view.held_out is None:
        return ""
    step = f"step {run.view.held_out.optimizer_step:,}"
    return f"{step} of {run.plan.steps.optimizer_steps:,}" if run.plan else step


def _loss(start: Evaluated, now: Evaluated, change: MeanEstimate | None, progress: str) -> str:
    """Return the sentence on the loss.

    Args:
        start, now: first and newest evaluation.
        change: change of the loss, pair by pair; None if it is unknown.
        progress: from `_progress`; a run under way has neither worked nor done harm yet.
    """
    before, after = start.metrics["loss"], now.metrics["loss"]
    pairs = f"the loss of {format_count(now.pairs, 'held-out pair')}"
    values = f"from {before:.4f} to {after:.4f}"
    so_far = f" so far ({progress})" if progress else ""
    if change is None:
        return f"{f'So far ({progress})' if progress else 'After training'}, {pairs} went {values}."
    how = f"{values}: {difference(change, '+.4f')}"
    if not change.is_significant:
        return f"Undecided{so_far}: {pairs} went {how}."
    if f"{before:.4f}" == f"{after:.4f}":
        return f"Hardly anything changed{so_far}: {pairs} went {how}."
    direction = "fell" if after < before else "rose"
    if progress:
        return f"So far ({progress}), {pairs} {direction} {how}."
    result = "worked" if after < before else "did harm"
    return f"The run {result}: {pairs} {direction} {how}."
