"""Comparison of several runs, as values for the terminal, HTML pages and JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dpo_cli.formatting import format_count
from dpo_cli.intervals import HIGH, LOW
from dpo_cli.paired import ModelScores, PairedComparison, compare
from dpo_cli.profile.resolved import values_affecting
from dpo_cli.profile.table import Affects
from dpo_cli.profile.text import show_value
from dpo_cli.run.eval_config import split_of
from dpo_cli.run.events import ACCURACIES, ACCURACY, Evaluated
from dpo_cli.run.plan import Plan
from dpo_cli.run.summary import RunSummary
from dpo_cli.run.view import RunState, RunView
from dpo_cli.ui.significance import comparison_note

METRICS = ("loss", ACCURACY, "rewards/margins", "margin_per_token", "kl")
"""Metrics of each run, over its last steps and over the held-out pairs."""

_DIGEST_DIGITS = 8


@dataclass(frozen=True, eq=False)
class ComparedRun:
    """Run in a comparison.

    Attributes:
        letter: name of the run in charts and tables.
        summary: state, duration and size.
        view: state gathered from the events.
        settings: resolved profile, as nested tables.
        scores: metrics of each held-out pair at the last evaluation; None if they are not stored.
        start_scores: the same at the first evaluation.
        results: comparisons of `compared` so far, by the other run.
    """

    letter: str
    summary: RunSummary
    view: RunView
    settings: Mapping[str, Any]
    scores: ModelScores | None = None
    start_scores: ModelScores | None = None
    results: dict[ComparedRun, PairedComparison | None] = field(
        default_factory=dict, init=False, repr=False
    )

    @property
    def name(self) -> str:
        """Name of the run's directory."""
        return self.summary.name

    @property
    def plan(self) -> Plan | None:
        """Plan of the run; None if there is none."""
        return self.view.plan

    @property
    def model(self) -> str:
        """One-line description of the model; empty without a plan."""
        return self.plan.model.description if self.plan else ""

    @property
    def fingerprints(self) -> Mapping[str, str]:
        """SHA-256 of the inputs; empty without a plan."""
        return self.plan.fingerprints if self.plan else {}

    @property
    def accuracy(self) -> tuple[float, tuple[float, float]] | None:
        """Accuracy on the held-out pairs, and its 95 % interval."""
        return accuracy_of(self.view.held_out)


def accuracy_of(evaluation: Evaluated | None) -> tuple[float, tuple[float, float]] | None:
    """Return the accuracy of an evaluation and its 95 % interval; None if there is none.

    A policy that equals its reference has no accuracy.
    """
    summary = evaluation.groups.get("all", {}) if evaluation else {}
    if not {ACCURACY, ACCURACY + LOW, ACCURACY + HIGH} <= summary.keys():
        return None
    return summary[ACCURACY], (summary[ACCURACY + LOW], summary[ACCURACY + HIGH])


@dataclass(frozen=True)
class Difference:
    """Setting or fact whose value differs between runs."""

    key: str
    values: tuple[Any, ...]
    """One value per run; None if the run has none."""

    def groups(self, letters: Sequence[str]) -> dict[str, list[str]]:
        """Return the letters of the runs by value; paths are shortened if that is unambiguous.

        Settings are written as in a profile, facts of the plan (threads, versions) without quotes.
        """
        groups: dict[str, list[str]] = {}
        names = [_file_name(value) for value in self.values]
        has_paths = len(set(names)) == len(set(map(str, self.values)))
        for letter, value, name in zip(letters, self.values, names, strict=True):
            shown = name if has_paths else value
            is_fact = "." not in self.key and isinstance(shown, str)
            groups.setdefault(shown if is_fact else show_value(shown), []).append(letter)
        return groups


def _file_name(value: Any) -> Any:
    return value.rpartition("/")[2] if isinstance(value, str) and value[:1] == "/" else value


def differences(runs: Sequence[ComparedRun]) -> list[Difference]:
    """Return the settings that differ, then contents of files, devices and versions.

    Paths that differ are left out if the contents are equal. A run without a plan has no contents
    and devices to compare.
    """
    keys: dict[str, None] = {}
    all_facts = [dict(_facts(run)) for run in runs]
    for facts in all_facts:
        keys |= dict.fromkeys(facts)
    rows = [Difference(key, tuple(facts.get(key) for facts in all_facts)) for key in keys]
    different = [each for each in rows if _differs(each, runs)]
    changed = {each.key for each in different}
    # A path that differs is kept only if its content has no fingerprint, or differs too.
    return [each for each in different if _content_of(each.key, runs) in (None, *changed)]


def _differs(difference: Difference, runs: Sequence[ComparedRun]) -> bool:
    # Keys with a dot are settings; all others come from the plan. A run without a plan has no value
    # to compare, which is not the same as the value None.
    sources = [run.settings if "." in difference.key else run.plan for run in runs]
    values = [value for value, source in zip(difference.values, sources, strict=True) if source]
    return any(value != values[0] for value in values)


def _facts(run: ComparedRun) -> Iterator[tuple[str, Any]]:
    for table, keys in run.settings.items():
        for key, value in keys.items():
            yield f"{table}.{key}", value
    if run.plan is None:
        return
    for name, digest in run.fingerprints.items():
        if name != "reference" or digest != run.fingerprints.get("weights"):
            yield f"content of {name}", digest[:_DIGEST_DIGITS]
    yield "device", run.plan.device
    yield "dtype", run.plan.dtype
    yield from run.plan.environment.items()


_CONTENTS = {
    "model.weights": "content of weights",
    "model.reference": "content of reference",
    "model.out_dir": "content of weights",
    "model.tokenizer": "content of tokenizer",
    "data.data_path": "content of data",
    "eval.path": "content of held_out",
}
"""Fingerprint of the file or directory that a path key names."""


def _content_of(key: str, runs: Sequence[ComparedRun]) -> str | None:
    """Return the fingerprint to compare instead of the path `key`; None if there is none."""
    name = _CONTENTS.get(key)
    fingerprint = name.removeprefix("content of ") if name else ""
    is_known = all(fingerprint in run.fingerprints for run in runs)
    return name if is_known else None


def notes(runs: Sequence[ComparedRun]) -> list[str]:
    """Return notes on which metrics are comparable and what they prove."""
    lines = []
    if len({_objective(run) for run in runs}) > 1:
        lines.append(
            "the runs have different objectives ([dpo]): losses, rewards and margins are not "
            "comparable; accuracy, margin per token and KL are"
        )
    unfinished = [run.letter for run in runs if run.summary.state is not RunState.COMPLETED]
    if unfinished:
        are = "is" if len(unfinished) == 1 else "are"
        lines.append(f"{join_names(unfinished)} {are} not completed")
    unmoved = [run.letter for run in runs if run.view.held_out and run.accuracy is None]
    if unmoved:
        are = "equal their references" if len(unmoved) > 1 else "equals its reference"
        lines.append(f"{join_names(unmoved)} {are} on the held-out pairs: no accuracy")
    without = [run.letter for run in runs if run.view.held_out is None]
    if without and len(without) < len(runs):
        have = "has" if len(without) == 1 else "have"
        lines.append(f"{join_names(without)} {have} no held-out pairs")
    samples: dict[str, list[ComparedRun]] = {}
    for run in runs:
        if run.accuracy is not None:
            samples.setdefault(_held_out_pairs(run), []).append(run)
    if len(samples) > 1:
        groups = "; ".join(join_names([run.letter for run in group]) for group in samples.values())
        lines.append(f"held-out metrics compare only among runs with the same pairs: {groups}")
    for group in samples.values():
        if len(group) > 1:
            lines += [_best_note(group), *_comparison_notes(group)]
    return lines


def best(runs: Sequence[ComparedRun]) -> ComparedRun | None:
    """Return the run with the highest held-out accuracy; None if the held-out pairs differ.

    Ties are broken by the lower held-out loss or, with different objectives, by the larger margin
    per token.
    """
    if len(runs) < 2 or any(run.accuracy is None for run in runs):
        return None
    return _best_of(runs) if len({_held_out_pairs(run) for run in runs}) == 1 else None


def _best_of(runs: Sequence[ComparedRun]) -> ComparedRun:
    """Return what `best` returns, for runs with the same held-out pairs."""
    has_one_objective = len({_objective(run) for run in runs}) == 1

    def merit(run: ComparedRun) -> tuple[float, float]:
        if has_one_objective:
            return _held_out(run, ACCURACY), -_held_out(run, "loss")
        return _held_out(run, ACCURACY), _held_out(run, "margin_per_token")

    return max(runs, key=merit)


def _best_note(runs: Sequence[ComparedRun]) -> str:
    """Name the best of several runs with the same held-out pairs."""
    first = _best_of(runs)
    share = _held_out(first, ACCURACY)
    equals = [run.letter for run in runs if _held_out(run, ACCURACY) == share]
    have = "have" if len(equals) > 1 else "has"
    return (
        f"{join_names(equals)} {have} the highest held-out accuracy: {share:.2f} over "
        f"{format_count(_pairs(first), 'pair')}"
    )


def _comparison_notes(runs: Sequence[ComparedRun]) -> Iterator[str]:
    """Compare the best run with each of the others, pair by pair."""
    first = _best_of(runs)
    for run in runs:
        if run is first:
            continue
        result = compare_held_out(first, run)
        if result is None:
            yield (
                f"{first.letter} vs. {run.letter}: not tested, because the scores of each pair are"
                " not stored; dpo eval computes them"
            )
            continue
        has_one_objective = _objective(first) == _objective(run)
        yield comparison_note(first.letter, run.letter, result, has_one_objective=has_one_objective)


def compare_held_out(run: ComparedRun, other: ComparedRun) -> PairedComparison | None:
    """Compare two runs with the same held-out pairs; None if a run has no stored scores."""
    if other not in run.results:
        run.results[other] = _compare(run.scores, other.scores)
    return run.results[other]


def _compare(scores: ModelScores | None, others: ModelScores | None) -> PairedComparison | None:
    if scores is None or others is None:
        return None
    try:
        return compare(scores, others, ACCURACIES)
    except ValueError:  # the pairs differ: one of the files is not of this run
        return None


def indistinguishable(
    first: ComparedRun, runs: Sequence[ComparedRun]
) -> dict[str, PairedComparison | None]:
    """Return the runs whose accuracy is not significantly lower than that of `first`, by letter.

    None for a run that cannot be compared.
    """
    found: dict[str, PairedComparison | None] = {}
    for run in runs:
        result = None if run is first else compare_held_out(first, run)
        test = result.accuracies.get(ACCURACY) if result else None
        if run is not first and not (test and test.is_significant):
            found[run.letter] = result
    return found


def _held_out_pairs(run: ComparedRun) -> str:
    """Return a key of the held-out pairs; equal for runs with the same pairs."""
    fingerprints = run.fingerprints
    source = fingerprints.get("held_out") or (fingerprints.get("data"), split_of(run.settings))
    cut = values_affecting(Affects.HELD_OUT, run.settings, plain=True)
    return str((_pairs(run), source, fingerprints.get("tokenizer"), cut))


def _held_out(run: ComparedRun, metric: str) -> float:
    return run.view.held_out.metrics.get(metric, 0.0) if run.view.held_out else 0.0


def _pairs(run: ComparedRun) -> int:
    return run.view.held_out.pairs if run.view.held_out else 0


def _objective(run: ComparedRun) -> str:
    """Return the settings that define the loss; losses compare only if these are equal."""
    return str(values_affecting(Affects.LOSS, run.settings))


def join_names(names: Iterable[str]) -> str:
    """Join names: A, B and C."""
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last


def as_json(runs: Sequence[ComparedRun]) -> dict[str, Any]:
    """Return the comparison as plain values."""
    first = best(runs)
    return {
        "runs": [_run_as_json(run) for run in runs],
        "comparisons": _comparisons_as_json(runs, first),
        "differences": {each.key: list(each.values) for each in differences(runs)},
        "notes": notes(runs),
        "best": first.name if first else None,
    }


def _comparisons_as_json(
    runs: Sequence[ComparedRun], first: ComparedRun | None
) -> list[dict[str, Any]]:
    """Return the best run compared with each of the others."""
    if first is None:
        return []
    results = {run.letter: compare_held_out(first, run) for run in runs if run is not first}
    return [
        {"run": first.letter, "other": letter, **dataclasses.asdict(result)}
        for letter, result in results.items()
        if result
    ]


def _run_as_json(run: ComparedRun) -> dict[str, Any]:
    view, evaluation = run.view, run.view.held_out
    held_out: dict[str, Any] | None = None
    if evaluation is not None:
        held_out = {
            "step": evaluation.step,
            "pairs": evaluation.pairs,
            "metrics": evaluation.metrics,
            "accuracy_interval": run.accuracy[1] if run.accuracy else None,
            "at_start": view.held_out_start.metrics if view.held_out_start else None,
        }
    return {
        "letter": run.letter,
        **dataclasses.asdict(run.summary),
        "final": {metric: view.recent_mean(metric) for metric in METRICS},
        "held_out": held_out,
        "alerts": [dataclasses.asdict(alert) for alert in view.alerts.values()],
    }
