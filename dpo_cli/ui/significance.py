"""Words for the comparison of two models on the same pairs, for the terminal, pages and JSON."""

from __future__ import annotations

import math
from collections.abc import Iterable

from dpo_cli.formatting import format_count
from dpo_cli.paired import MeanEstimate, PairedComparison, Preference
from dpo_cli.run.events import ACCURACY, RANKING

ACCURACY_NAMES = {ACCURACY: "accuracy", RANKING: "ranking accuracy"}
ACCURACY_MEANING = "accuracy: pairs whose chosen gained more than rejected over the reference"
RANKING_MEANING = "ranking: pairs whose chosen has the higher log-prob, reference left aside"
_DIFFERENCES = (("loss", "loss", "+.4f"), ("margin/token", "margin_per_token", "+.3g"))
"""Name, metric and format of the differences that are shown."""
_TOO_CLOSE = "too close to be settled by more pairs"


def comparison_note(
    model: str, other: str, result: PairedComparison, *, has_one_objective: bool = True
) -> str:
    """Say how a model differs from another one, and whether chance explains it.

    Args:
        model, other: their names.
        result: differences are those of `model` minus `other`.
        has_one_objective: False if their losses are not comparable.
    """
    parts = []
    tested = next((name for name in (ACCURACY, RANKING) if name in result.accuracies), None)
    if tested is not None:
        parts.append(f"{ACCURACY_NAMES[tested]}: {_split(result.accuracies[tested])}")
    for title, metric, form in _DIFFERENCES:
        if metric in result.differences and (has_one_objective or metric != "loss"):
            parts.append(f"{title} {difference(result.differences[metric], form)}")
    return f"{model} vs. {other}, pair by pair: {'; '.join(parts) or 'no metric in common'}"


def difference(estimate: MeanEstimate, form: str) -> str:
    """Return a mean difference with its 95 % interval, and the pairs that would settle it."""
    if not estimate.mean and estimate.low == estimate.high == 0:
        return "equal for every pair"
    mean, low, high = (format(each, form) for each in (estimate.mean, estimate.low, estimate.high))
    if not math.isfinite(estimate.mean):
        return mean
    if not math.isfinite(estimate.high - estimate.low):
        return f"{mean} (no interval, with a single pair or prompt)"
    settles = still_needed(", ", estimate.more_pairs)
    if not estimate.is_significant and (not settles or not float(mean)):
        settles = f", {_TOO_CLOSE}"
    return f"{mean} (95 %: {low} to {high}{settles})"


def pairs_to_settle(results: Iterable[PairedComparison]) -> int | None:
    """Return the most pairs that an accuracy still needs; None if one cannot be settled."""
    tests = [result.accuracies[ACCURACY] for result in results if ACCURACY in result.accuracies]
    needed = [test.more_pairs for test in tests if test.more_pairs is not None]
    return max(needed) if needed and len(needed) == len(tests) else None


def _split(test: Preference) -> str:
    if not test.ahead + test.behind:
        return f"right about the same {test.unit}s"
    counts = f"{format_count(test.ahead, test.unit)} to {test.behind:,}, {_p(test.p)}"
    if test.is_significant:
        return f"{counts}, significant"
    settles = still_needed("", test.more_pairs)
    return f"{counts}, {f'{settles} at 95 %' if settles else _TOO_CLOSE}"


def _p(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}" if p < 0.1 else f"p = {p:.2f}"


def still_needed(before: str, pairs: int | None) -> str:
    """Return how many more pairs would settle a difference; empty if it is settled, or too close.

    Args:
        before: text to put in front, for example ", ".
        pairs: `more_pairs` of an estimate or a test.
    """
    if not pairs:
        return ""
    digits = max(0, len(str(pairs)) - 2)  # an estimate: two digits are enough
    rounded = round(pairs, -digits)
    return f"{before}about {format_count(rounded, 'more pair')} would settle it"
