"""What models came to on preference pairs, and how far that can be believed."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from dpo_cli.formatting import format_count, format_number, format_with_interval
from dpo_cli.intervals import Z, difference_interval
from dpo_cli.profile.text import show_path
from dpo_cli.ui.comparison import ACCURACY
from dpo_cli.ui.terminal.layout import one_line

if TYPE_CHECKING:
    from dpo_cli.inference.evaluate import EvaluatedModel, Evaluation


Figures = Mapping[str, float]
Cell = Callable[[Figures], str]

ALL = "all"
LIKELIER = "logps/accuracies"
_HEADINGS = {ACCURACY: "accuracy", LIKELIER: "likelier"}
_NAMES = {ACCURACY: "accuracy", LIKELIER: "preference accuracy"}
_FIGURES = (
    ("reference", "ref_logps/accuracies", ".2f"),
    ("loss", "loss", ".4f"),
    ("margin", "rewards/margins", "+.3g"),
    ("margin_per_token", "gap", "+.3g"),
    ("KL", "kl", ".3g"),
    ("chosen", "token_logps/chosen", ".3f"),
    ("entropy", "entropy", ".3f"),
)
"""Name, figure, and how that is written."""
_NARROW = ("margin/token", "KL")
_WIDE = 112
_CHANCE = 0.5


class EvaluationView:
    """Rich renderable of an evaluation: one model by groups of pairs, or several side by side."""

    def __init__(self, evaluation_result: Evaluation) -> None:
        self._judgement = evaluation_result

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Who is judged and by what, the figures, and what they do not prove."""
        for line in _heading(self._judgement):
            yield Text(one_line(line))
        yield Text()
        yield self._table(is_wide=options.max_width >= _WIDE)
        for note in notes(self._judgement):
            yield Text.assemble(("note: ", "bold yellow"), note)

    def _table(self, *, is_wide: bool) -> Table:
        models = self._judgement.models
        rows: Mapping[str, Figures] = models[0].groups
        if len(models) > 1:
            rows = {letter: its.groups[ALL] for letter, its in _by_letter(models).items()}
        table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 1, 0, 0))
        table.add_column("", no_wrap=True, style="dim" if len(models) == 1 else "bold")
        columns = dict(_columns(models[0].groups[ALL], is_wide=is_wide))
        for name in columns:
            table.add_column(name, justify="right", no_wrap=True)
        for name, figures in rows.items():
            cells = (cell(figures) for cell in columns.values())
            table.add_row(name.rpartition("/")[2], *cells)
        return table


def _heading(evaluation_result: Evaluation) -> Iterator[str]:
    """Who is judged, on which pairs, compared with what, and by which rules."""
    models = evaluation_result.models
    for letter, model in _by_letter(models).items():
        after = "" if model.optimizer_step is None else f" after step {model.optimizer_step:,}"
        yield f"{letter}  {model.title}{after}" if len(models) > 1 else f"{model.title}{after}"
    profile = evaluation_result.eval_config.profile
    noun = "held-out pair" if evaluation_result.eval_config.is_own else "pair"
    pairs = format_count(int(models[0].groups[ALL]["pairs"]), noun)
    aside = (
        f", {format_count(evaluation_result.skipped_rows, 'row')} set aside"
        if evaluation_result.skipped_rows
        else ""
    )
    yield f"{pairs} of {', '.join(map(show_path, profile.data.paths))}{aside}"
    against = (
        f"against {evaluation_result.reference}"
        if evaluation_result.reference
        else "against no reference"
    )
    dpo = profile.dpo
    rules = f"{dpo.title}, beta {dpo.beta:g}, " if "loss" in models[0].groups[ALL] else ""
    yield f"{against}; {rules}reduction {dpo.reduction}, max_seq_len {profile.data.max_seq_len}"


def _columns(told: Figures, *, is_wide: bool) -> Iterator[tuple[str, Cell]]:
    """Heading, and what stands below it of a row's figures; `told` are those that there are."""
    yield "pairs", lambda figures: f"{figures['pairs']:,.0f}"
    for name, heading in _HEADINGS.items():
        if name in told:
            yield f"{heading} (95 %)", partial(_share, name)
    for heading, name, form in _FIGURES:
        if name in told and (is_wide or heading in _NARROW):
            yield heading, partial(_mean, name, form)


def _mean(name: str, form: str, figures: Figures) -> str:
    return format_number(figures[name], form)


def _share(name: str, figures: Figures) -> str:
    if name == ACCURACY and _is_reference(figures):
        return "–"
    low, high = figures[f"{name}/low"], figures[f"{name}/high"]
    return format_with_interval(figures[name], low, high)


def _by_letter(models: Sequence[EvaluatedModel]) -> dict[str, EvaluatedModel]:
    return {chr(ord("A") + index): model for index, model in enumerate(models)}


def notes(evaluation_result: Evaluation) -> list[str]:
    """What the figures do not say by themselves: what they prove, and what they do not."""
    told = []
    for title in evaluation_result.trained_on:
        told.append(f"{title} was trained on pairs of this file: it may know these")
    models = _by_letter(evaluation_result.models)
    chance = -math.log(evaluation_result.vocab_size)
    worse = [
        letter
        for letter, model in models.items()
        if model.groups[ALL]["token_logps/chosen"] < chance
    ]
    if worse:
        told.append(
            f"{_subject(worse, models)}guessing would make the chosen answers likelier than this"
            f" model does, {chance:.2f} nats a token: is it the tokenizer of these weights?"
        )
    for letter, model in models.items():
        told.append(_subject([letter], models) + _verdict(model.groups[ALL]))
    if len(models) > 1:
        return told + list(_close_calls(models))
    return told + list(_small_groups(evaluation_result.models[0].groups))


def _subject(letters: Sequence[str], models: Mapping[str, EvaluatedModel]) -> str:
    """Whom a note is about, where there are several."""
    return f"{', '.join(letters)}: " if len(models) > 1 else ""


def _is_reference(figures: Figures) -> bool:
    """Whether the model says of all pairs what the reference says: nothing can be accurate then."""
    return figures.get("kl") == 0


def _verdict(figures: Figures) -> str:
    """Whether so many pairs tell the model from chance."""
    if _is_reference(figures):
        return "to this model the pairs are what they are to the reference: nothing has moved"
    name = _decisive(figures)
    seen, low, high = (figures[name + end] for end in ("", "/low", "/high"))
    pairs = int(figures["pairs"])
    over = f"{_NAMES[name]} {seen:.2f} over {format_count(pairs, 'pair')}"
    if low > _CHANCE:
        return f"{over}: above 0.5 by more than chance explains (95 %)"
    if high < _CHANCE:
        return f"{over}: below 0.5 by more than chance explains (95 %)"
    if abs(seen - _CHANCE) * pairs < 1:
        return f"{over}: as good as chance, as far as so many pairs can tell"
    needed = math.ceil((Z * _CHANCE / (seen - _CHANCE)) ** 2)
    return f"{over} may be chance: to tell {seen:.2f} from 0.5 takes some {needed:,} pairs"


def _small_groups(groups: Mapping[str, Figures]) -> Iterator[str]:
    name = _decisive(groups[ALL])
    unclear = [
        group.rpartition("/")[2]
        for group, figures in groups.items()
        if group != ALL and figures[f"{name}/low"] <= _CHANCE <= figures[f"{name}/high"]
    ]
    if unclear and not _is_reference(groups[ALL]):
        yield f"too few pairs to tell their {_NAMES[name]} from 0.5: {', '.join(unclear)}"


def _close_calls(models: Mapping[str, EvaluatedModel]) -> Iterator[str]:
    """Whether the last of several models is told from each of the others."""
    *others, (last, its) = ((letter, model.groups[ALL]) for letter, model in models.items())
    name, pairs = _decisive(its), int(its["pairs"])
    for letter, figures in others:
        if _is_reference(figures) or _is_reference(its):
            continue
        low, high = difference_interval(its[name], pairs, figures[name], pairs)
        if low <= 0 <= high:
            yield (
                f"{format_count(pairs, 'pair')} do not tell {last} from {letter} by their"
                f" {_NAMES[name]} (95 %: {low:+.2f} to {high:+.2f})"
            )


def _decisive(figures: Figures) -> str:
    return ACCURACY if ACCURACY in figures else LIKELIER


def as_json(evaluation_result: Evaluation) -> dict[str, Any]:
    """Everything, in plain values; figures under the names of the event stream."""
    profile = evaluation_result.eval_config.profile
    return {
        "models": [dataclasses.asdict(model) for model in evaluation_result.models],
        "reference": evaluation_result.reference,
        "data": [str(path) for path in profile.data.paths],
        "held_out": evaluation_result.eval_config.is_own,
        "skipped_rows": evaluation_result.skipped_rows,
        "max_seq_len": profile.data.max_seq_len,
        "loss": profile.dpo.title,
        "beta": profile.dpo.beta,
        "reduction": profile.dpo.reduction,
        "device": evaluation_result.device,
        "dtype": evaluation_result.dtype,
        "notes": notes(evaluation_result),
    }
