"""Terminal output of an evaluation: metrics on preference pairs, and their significance."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from dpo_cli.formatting import MISSING, format_count, format_number, format_with_interval
from dpo_cli.intervals import HIGH, LOW, Z
from dpo_cli.paired import more_pairs
from dpo_cli.printable import one_line
from dpo_cli.profile.model_kind import KIND_TITLES
from dpo_cli.profile.text import show_path
from dpo_cli.run.events import ACCURACY, RANKING, TIES
from dpo_cli.run.plan import KNOWN_SHARE, part_of
from dpo_cli.ui.significance import (
    ACCURACY_MEANING,
    ACCURACY_NAMES,
    RANKING_MEANING,
    comparison_note,
)
from dpo_cli.ui.terminal.plain import think_blocks

if TYPE_CHECKING:
    from dpo_cli.inference.evaluate import EvaluatedModel, Evaluation


Figures = Mapping[str, float]
Cell = Callable[[Figures], str]

ALL = "all"
_HEADINGS = {ACCURACY: "accuracy", RANKING: "ranking"}
_FIGURES = (
    ("reference", "ref_logps/accuracies", ".2f"),
    ("loss", "loss", ".4f"),
    ("margin", "rewards/margins", "+.3g"),
    ("margin/token", "margin_per_token", "+.3g"),
    ("KL", "kl", ".3g"),
    ("chosen", "token_logps/chosen", ".3f"),
    ("entropy", "entropy", ".3f"),
)
"""Heading, metric and format."""
_NARROW = ("margin/token", "KL")
_WIDE = 118
_CHANCE = 0.5


class EvaluationView:
    """Rich renderable of an evaluation: one model by groups of pairs, or several side by side."""

    def __init__(self, evaluation: Evaluation) -> None:
        self._evaluation, self._models = evaluation, evaluation.models

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw models, data and settings, the metrics, and notes on their significance."""
        for line in _heading(self._evaluation):
            yield Text(one_line(line))
        yield Text()
        yield self._table(is_wide=options.max_width >= _WIDE)
        if {ACCURACY, RANKING} <= {name for each in self._models for name in each.groups[ALL]}:
            yield Text(f"{ACCURACY_MEANING}\n{RANKING_MEANING}", style="dim")
        for note in notes(self._evaluation):
            yield Text.assemble(("note: ", "bold yellow"), note)

    def _table(self, *, is_wide: bool) -> Table:
        models = self._models
        rows: Mapping[str, Figures] = models[0].groups
        available = {name for model in models for name in model.groups[ALL]}
        if len(models) > 1:
            rows = {letter: model.groups[ALL] for letter, model in _by_letter(models).items()}
        table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 1, 0, 0))
        table.add_column("", no_wrap=True, style="dim" if len(models) == 1 else "bold")
        columns = dict(_columns(available, is_wide=is_wide))
        for name in columns:
            table.add_column(name, justify="right", no_wrap=True)
        for name, figures in rows.items():
            cells = (cell(figures) for cell in columns.values())
            table.add_row(name.rpartition("/")[2], *cells)
        return table


def _heading(evaluation: Evaluation) -> Iterator[str]:
    """Yield the lines about models, pairs, reference and settings."""
    models = evaluation.models
    for letter, model in _by_letter(models).items():
        after = "" if model.optimizer_step is None else f" after step {model.optimizer_step:,}"
        yield f"{letter}  {model.title}{after}" if len(models) > 1 else f"{model.title}{after}"
    profile = evaluation.eval_config.profile
    noun = "held-out pair" if evaluation.eval_config.is_own else "pair"
    pairs = format_count(int(models[0].groups[ALL]["pairs"]), noun)
    aside = (
        f", {format_count(evaluation.skipped_rows, 'skipped row')}"
        if evaluation.skipped_rows
        else ""
    )
    yield f"{pairs} of {', '.join(map(show_path, profile.data.paths))}{aside}"
    against = f"against {evaluation.reference}" if evaluation.reference else "against no reference"
    dpo = profile.dpo
    rules = f"{dpo.title}, beta {dpo.beta:g}, " if "loss" in models[0].groups[ALL] else ""
    yield f"{against}; {rules}reduction {dpo.reduction}, max_seq_len {profile.data.max_seq_len}"
    kind = evaluation.eval_config.default_kind
    defaults = f"; defaults for {KIND_TITLES[kind]}" if kind else ""
    tokenizer = profile.model.tokenizer
    template = f"chat template of {show_path(tokenizer)}" if tokenizer else "the model's template"
    yield f"{template}, {think_blocks(profile.data.empty_think_ratio)}{defaults}"


def _columns(available: Container[str], *, is_wide: bool) -> Iterator[tuple[str, Cell]]:
    """Yield heading and cell function of each column whose metric is in `available`."""
    yield "pairs", lambda figures: f"{figures['pairs']:,.0f}"
    for name, heading in _HEADINGS.items():
        if name in available:
            yield f"{heading} (95 %)", partial(_share, name)
    for heading, name, form in _FIGURES:
        if name in available and (is_wide or heading in _NARROW):
            yield heading, partial(_mean, name, form)


def _mean(name: str, form: str, figures: Figures) -> str:
    return format_number(figures.get(name), form)


def _share(name: str, figures: Figures) -> str:
    if name not in figures:
        return MISSING
    low, high = figures[name + LOW], figures[name + HIGH]
    return format_with_interval(figures[name], low, high)


def _by_letter(models: Sequence[EvaluatedModel]) -> dict[str, EvaluatedModel]:
    return {chr(ord("A") + index): model for index, model in enumerate(models)}


def notes(evaluation: Evaluation) -> list[str]:
    """Return notes on what the metrics prove and what they do not."""
    lines = []
    for title in evaluation.trained_on:
        lines.append(f"{title} was trained on pairs of this file and may have seen these")
    models = _by_letter(evaluation.models)
    pairs = int(evaluation.models[0].groups[ALL]["pairs"])
    if (evaluation.known_prompts or 0) > KNOWN_SHARE * pairs:
        lines.append(
            f"{part_of(evaluation.known_prompts, pairs)} pairs have a prompt that the run also"
            " trained on: they make the result look better than it is"
        )
    if evaluation.truncated:
        lines.append(
            f"{part_of(evaluation.truncated, pairs)} pairs are truncated at data.max_seq_len ="
            f" {evaluation.eval_config.profile.data.max_seq_len}: what is cut is not evaluated"
        )
    chance = -math.log(evaluation.vocab_size)
    worse = [
        letter
        for letter, model in models.items()
        if model.groups[ALL]["token_logps/chosen"] < chance
    ]
    if worse:
        lines.append(
            f"{_subject(worse, models)}chosen answers have a lower log-prob than random guessing"
            f" ({chance:.2f} nats per token); check that the tokenizer belongs to these weights"
        )
    for letter, model in models.items():
        lines.append(_subject([letter], models) + _compare_with_chance(model.groups[ALL]))
    if len(models) > 1:
        letters = list(models)
        return lines + [
            comparison_note(letters[each.model], letters[each.other], each.result)
            for each in evaluation.comparisons
        ]
    return lines + list(_small_groups(evaluation.models[0].groups))


def _subject(letters: Sequence[str], models: Mapping[str, EvaluatedModel]) -> str:
    return f"{', '.join(letters)}: " if len(models) > 1 else ""


def _is_reference(figures: Figures) -> bool:
    """Return True if all log-probs equal the reference's: all pairs tie."""
    return figures.get(TIES) == 1


def _compare_with_chance(figures: Figures) -> str:
    """Compare the accuracy of a model with chance, by its 95 % interval."""
    if _is_reference(figures):
        return "identical to the reference: nothing was learned"
    name = _decisive(figures)
    seen, low, high = (figures[name + end] for end in ("", LOW, HIGH))
    pairs = int(figures["pairs"])
    over = f"{ACCURACY_NAMES[name]} {seen:.2f} over {format_count(pairs, 'pair')}"
    if low > _CHANCE:
        return f"{over}: significantly above 0.5 (95 %)"
    if high < _CHANCE:
        return f"{over}: significantly below 0.5 (95 %)"
    # Pairs for which the half-width Z * sqrt(0.25 / pairs) of the interval equals the difference.
    needed = math.ceil((Z * _CHANCE / (seen - _CHANCE)) ** 2) if seen != _CHANCE else math.inf
    if more_pairs(pairs, needed / pairs) is None:
        return f"{over}: not distinguishable from chance"
    return f"{over}: may be chance; about {needed:,} pairs would show {seen:.2f} to differ from 0.5"


def _small_groups(groups: Mapping[str, Figures]) -> Iterator[str]:
    name = _decisive(groups[ALL])
    unclear = [
        group.rpartition("/")[2]
        for group, figures in groups.items()
        if group != ALL and not _is_decided(figures, name)
    ]
    if unclear and not _is_reference(groups[ALL]):
        metric = ACCURACY_NAMES[name]
        yield f"too few pairs to distinguish their {metric} from 0.5: {', '.join(unclear)}"


def _is_decided(figures: Figures, name: str) -> bool:
    """Return True if the 95 % interval of a share excludes 0.5."""
    if name not in figures:
        return False
    return not figures[name + LOW] <= _CHANCE <= figures[name + HIGH]


def _decisive(figures: Figures) -> str:
    return ACCURACY if ACCURACY in figures else RANKING


def as_json(evaluation: Evaluation) -> dict[str, Any]:
    """Return the evaluation as plain values; metrics have the names of the event stream."""
    profile = evaluation.eval_config.profile
    return {
        "models": [dataclasses.asdict(model) for model in evaluation.models],
        "reference": evaluation.reference,
        "data": [str(path) for path in profile.data.paths],
        "held_out": evaluation.eval_config.is_own,
        "skipped_rows": evaluation.skipped_rows,
        "truncated": evaluation.truncated,
        "known_prompts": evaluation.known_prompts,
        "max_seq_len": profile.data.max_seq_len,
        "loss": profile.dpo.title,
        "beta": profile.dpo.beta,
        "reduction": profile.dpo.reduction,
        "empty_think_ratio": profile.data.empty_think_ratio,
        "tokenizer": str(profile.model.tokenizer or ""),
        "device": evaluation.device,
        "dtype": evaluation.dtype,
        "comparisons": [dataclasses.asdict(each) for each in evaluation.comparisons],
        "notes": notes(evaluation),
    }
