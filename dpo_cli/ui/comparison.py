"""What several runs come to side by side: values, for a terminal, a page or a program."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dpo_cli.formatting import format_count
from dpo_cli.intervals import difference_interval, wilson_interval
from dpo_cli.profile.resolved import values_affecting
from dpo_cli.profile.table import Affects
from dpo_cli.profile.text import show_value
from dpo_cli.run.eval_config import split_of
from dpo_cli.run.events import Evaluated
from dpo_cli.run.plan import Plan
from dpo_cli.run.summary import RunSummary
from dpo_cli.run.view import RunState, RunView

METRICS = ("loss", "rewards/accuracies", "rewards/margins", "margin_per_token", "kl")
"""What is stated of each run, over its last steps and over the held-out pairs."""
ACCURACY = "rewards/accuracies"

_DIGITS = 8


@dataclass(frozen=True)
class ComparedRun:
    """A run among others.

    Attributes:
        letter: stands for it in charts and tables.
        summary: its state, and what it took.
        view: what its events came to.
        settings: its resolved profile, as nested tables.
    """

    letter: str
    summary: RunSummary
    view: RunView
    settings: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The run's directory."""
        return self.summary.name

    @property
    def plan(self) -> Plan | None:
        """Plan of the run; None if it was never planned."""
        return self.view.plan

    @property
    def model(self) -> str:
        """One-line description of the model; empty if the run was never planned."""
        return self.plan.model.description if self.plan else ""

    @property
    def fingerprints(self) -> Mapping[str, str]:
        """SHA-256 of the inputs; empty if the run was never planned."""
        return self.plan.fingerprints if self.plan else {}

    @property
    def accuracy(self) -> tuple[float, tuple[float, float]] | None:
        """Over the held-out pairs, with the ends of its 95 % interval."""
        return accuracy_of(self.view.held_out)


def accuracy_of(evaluation: Evaluated | None) -> tuple[float, tuple[float, float]] | None:
    """An evaluation's accuracy and the ends of its 95 % interval; None if it has none."""
    if evaluation is None or not evaluation.pairs or ACCURACY not in evaluation.metrics:
        return None
    share = evaluation.metrics[ACCURACY]
    return share, wilson_interval(share, evaluation.pairs)


@dataclass(frozen=True)
class Difference:
    """A key that not all runs have the same value of."""

    key: str
    values: tuple[Any, ...]
    """One a run; None where it has none."""

    def groups(self, letters: Sequence[str]) -> dict[str, list[str]]:
        """The letters of the runs by their value, in words; of paths the part that tells."""
        found: dict[str, list[str]] = {}
        names = [_file_name(value) for value in self.values]
        has_paths = len(set(names)) == len(set(map(str, self.values)))
        for letter, value, name in zip(letters, self.values, names, strict=True):
            found.setdefault(show_value(name if has_paths else value), []).append(letter)
        return found


def _file_name(value: Any) -> Any:
    """The last part of an absolute path; anything else as it is."""
    return value.rpartition("/")[2] if isinstance(value, str) and value[:1] == "/" else value


def differences(runs: Sequence[ComparedRun]) -> list[Difference]:
    """The keys of the profiles that differ, then the contents of files, devices and versions.

    Where a file lies is left out if its content is the same for all. A run that was never planned
    knows nothing of contents and devices.
    """
    keys: dict[str, None] = {}
    all_facts = [dict(_facts(run)) for run in runs]
    for facts in all_facts:
        keys |= dict.fromkeys(facts)
    found = [Difference(key, tuple(facts.get(key) for facts in all_facts)) for key in keys]
    found = [each for each in found if _is_told_apart(each, runs)]
    changed = {each.key for each in found}
    return [each for each in found if _content_of(each.key, runs) in (None, *changed)]


def _is_told_apart(difference: Difference, runs: Sequence[ComparedRun]) -> bool:
    known = [run.settings if "." in difference.key else run.plan for run in runs]
    values = [value for value, its in zip(difference.values, known, strict=True) if its]
    return any(value != values[0] for value in values)


def _facts(run: ComparedRun) -> Iterator[tuple[str, Any]]:
    for table, fields in run.settings.items():
        for field, value in fields.items():
            yield f"{table}.{field}", value
    if run.plan is None:
        return
    for name, digest in run.fingerprints.items():
        if name != "reference" or digest != run.fingerprints.get("weights"):
            yield f"content of {name}", digest[:_DIGITS]
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
"""What a path stands for."""


def _content_of(key: str, runs: Sequence[ComparedRun]) -> str | None:
    """The fact that says more than the path `key`; None if it is no path, or nothing else says."""
    name = _CONTENTS.get(key)
    fingerprint = name.removeprefix("content of ") if name else ""
    is_known = all(fingerprint in run.fingerprints for run in runs)
    return name if is_known else None


def notes(runs: Sequence[ComparedRun]) -> list[str]:
    """What the figures do not say by themselves: which may be compared, and what they prove."""
    told = []
    if len({_objective(run) for run in runs}) > 1:
        told.append(
            "the runs have different objectives ([dpo]): their losses, rewards and margins are not "
            "of one kind; accuracy, gap and KL are"
        )
    unfinished = [run.letter for run in runs if run.summary.state is not RunState.COMPLETED]
    if unfinished:
        are = "is" if len(unfinished) == 1 else "are"
        told.append(f"{listed(unfinished)} {are} not completed")
    without = [run.letter for run in runs if run.accuracy is None]
    if without and len(without) < len(runs):
        told.append(f"{listed(without)} held no pairs out")
    samples: dict[str, list[ComparedRun]] = {}
    for run in runs:
        if run.accuracy is not None:
            samples.setdefault(_held_out_pairs(run), []).append(run)
    if len(samples) > 1:
        who = "; ".join(listed([run.letter for run in its]) for its in samples.values())
        told.append(f"held-out figures are of one kind only among those with the same pairs: {who}")
    return told + [_verdict(its) for its in samples.values() if len(its) > 1]


def best(runs: Sequence[ComparedRun]) -> ComparedRun | None:
    """The run with the highest held-out accuracy; of two the one with the lower held-out loss, or
    with the larger gap where losses are not of one kind.

    None where not all runs were evaluated on the same pairs.
    """
    if len(runs) < 2 or any(run.accuracy is None for run in runs):
        return None
    return _first(runs) if len({_held_out_pairs(run) for run in runs}) == 1 else None


def _first(runs: Sequence[ComparedRun]) -> ComparedRun:
    is_one_kind = len({_objective(run) for run in runs}) == 1

    def merit(run: ComparedRun) -> tuple[float, float]:
        second = -_held_out(run, "loss") if is_one_kind else _held_out(run, "margin_per_token")
        return _held_out(run, ACCURACY), second

    return max(runs, key=merit)


def _verdict(runs: Sequence[ComparedRun]) -> str:
    """Which of several runs with the same held-out pairs is the best, and what that proves."""
    first = _first(runs)
    share = _held_out(first, ACCURACY)
    equals = [run.letter for run in runs if _held_out(run, ACCURACY) == share]
    have, them = ("have", "them") if len(equals) > 1 else ("has", "it")
    told = (
        f"{listed(equals)} {have} the highest held-out accuracy: {share:.2f} over "
        f"{format_count(_pairs(first), 'pair')}"
    )
    close = {its: lead for its, lead in rivals(first, runs).items() if its not in equals}
    if not close:
        return told if len(equals) == len(runs) else f"{told}, more than chance explains (95 %)"
    ends = ", ".join(f"{low:+.2f} to {high:+.2f}" for low, high in close.values())
    return (
        f"{told}; but so few pairs do not tell {them} from {listed(close)} (95 %: ahead by {ends})"
    )


def rivals(first: ComparedRun, runs: Sequence[ComparedRun]) -> dict[str, tuple[float, float]]:
    """The letters of those that the held-out pairs do not tell from the first: 95 % of its lead."""
    leads = {run.letter: _lead(first, run) for run in runs if run is not first}
    return {letter: (low, high) for letter, (low, high) in leads.items() if low <= 0}


def _held_out_pairs(run: ComparedRun) -> str:
    """What decides which pairs are held out, as far as plans tell: one text for the same pairs."""
    prints = run.fingerprints
    source = prints.get("held_out") or (prints.get("data"), split_of(run.settings))
    cut = values_affecting(Affects.HELD_OUT, run.settings, plain=True)
    return str((_pairs(run), source, prints.get("tokenizer"), cut))


def _lead(run: ComparedRun, other: ComparedRun) -> tuple[float, float]:
    return difference_interval(
        _held_out(run, ACCURACY), _pairs(run), _held_out(other, ACCURACY), _pairs(other)
    )


def _held_out(run: ComparedRun, metric: str) -> float:
    return run.view.held_out.metrics.get(metric, 0.0) if run.view.held_out else 0.0


def _pairs(run: ComparedRun) -> int:
    return run.view.held_out.pairs if run.view.held_out else 0


def _objective(run: ComparedRun) -> str:
    """Settings that decide what the loss means: losses of equal ones can be compared."""
    return str(values_affecting(Affects.LOSS, run.settings))


def listed(letters: Iterable[str]) -> str:
    """A, B and C."""
    *most, last = letters
    return f"{', '.join(most)} and {last}" if most else last


def as_json(runs: Sequence[ComparedRun]) -> dict[str, Any]:
    """Everything of a comparison, in plain values."""
    first = best(runs)
    return {
        "runs": [_run_as_json(run) for run in runs],
        "differences": {each.key: list(each.values) for each in differences(runs)},
        "notes": notes(runs),
        "best": first.name if first else None,
    }


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
