"""Pairs as training sees them, as text with the tokens that carry loss marked."""

from __future__ import annotations

import itertools

from torch import Tensor

from dpo_cli.checks.reporter import Reporter
from dpo_cli.data.batching import shared_inputs
from dpo_cli.data.chat import ChatTokenizer, Tokenized, TokenizedPair
from dpo_cli.data.sources import Places
from dpo_cli.data.tokens import Rows
from dpo_cli.errors import UsageError
from dpo_cli.findings import PairPreview, Span


def preview(
    reporter: Reporter, rows: Rows, tokenizer: ChatTokenizer, stated: str | None
) -> PairPreview | None:
    """The pair of a row, as `Places.find` takes it, or the first one that is kept."""
    found = 0
    if stated is not None:
        first = rows.kept[0].line
        remedy = f"show another pair, such as --pair {rows.places.row_name(first)}"
        try:
            line = rows.places.find(stated)
        except UsageError as error:
            reporter.warn("pair", f"--pair {stated}", error.message, error.remedy)
            return None
        position = _position(rows, line)
        if position is None:
            reporter.warn("pair", rows.places.name(line), why_not_kept(rows, line), remedy)
            return None
        found = position
    return show_pair(tokenizer, rows.kept[found], rows.places)


def show_pair(tokenizer: ChatTokenizer, pair: TokenizedPair, places: Places) -> PairPreview:
    """One pair in runs of tokens that do, or do not, carry loss."""
    shared = shared_inputs(pair)

    def spans(side: Tokenized, start: int, end: int | None = None) -> tuple[Span, ...]:
        return tuple(_spans(tokenizer, side.ids[start:end], side.response[start:end]))

    return PairPreview(
        place=places.name(pair.line),
        shared=spans(pair.chosen, 0, shared),
        chosen=spans(pair.chosen, shared),
        rejected=spans(pair.rejected, shared),
    )


def why_not_kept(rows: Rows, line: int) -> str:
    """What is wrong with the row of a line that is not kept."""
    return next((row.reason for row in rows.skipped_rows if row.line == line), "no such row")


def _position(rows: Rows, line: int) -> int | None:
    """Where among the pairs that are kept the one of a line is."""
    found = (rows.kept.lines == line).nonzero().flatten().tolist()
    return found[0] if found else None


def _spans(tokenizer: ChatTokenizer, ids: Tensor, response: Tensor) -> list[Span]:
    """Runs of tokens that do, or do not, carry loss."""
    spans, start = [], 0
    for carries_loss, run in itertools.groupby(response.tolist()):
        length = len(list(run))
        text = tokenizer.decode(ids[start : start + length])
        spans.append(Span(text, length, carries_loss))
        start += length
    return spans
