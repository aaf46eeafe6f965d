"""Pairs as text, with the tokens that carry loss marked."""

from __future__ import annotations

import itertools

from torch import Tensor

from dpo_cli.checks.reporter import Reporter
from dpo_cli.data.batching import shared_inputs
from dpo_cli.data.chat import ChatTokenizer, Tokenized, TokenizedPair
from dpo_cli.data.places import Places
from dpo_cli.data.tokens import Rows
from dpo_cli.errors import UsageError
from dpo_cli.findings import PairPreview, Span


def preview(
    reporter: Reporter, rows: Rows, tokenizer: ChatTokenizer, row_name: str | None
) -> PairPreview | None:
    """Return the pair of the row `row_name` (see `Places.find`); None: the first kept pair."""
    if row_name is None:
        return make_preview(tokenizer, rows.kept[0], rows.places)
    try:
        line = rows.places.find(row_name)
    except UsageError as error:
        reporter.warn("pair", f"--pair {row_name}", error.message, error.remedy)
        return None
    position = (rows.kept.lines == line).nonzero()
    if not len(position):
        other = rows.places.row_name(rows.kept[0].line)
        remedy = f"Show another pair, for example --pair {other}."
        reporter.warn("pair", rows.places.name(line), why_not_kept(rows, line), remedy)
        return None
    return make_preview(tokenizer, rows.kept[int(position)], rows.places)


def make_preview(tokenizer: ChatTokenizer, pair: TokenizedPair, places: Places) -> PairPreview:
    """Convert a pair to spans of text with and without loss."""
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
    """Return the reason why a row is skipped."""
    return next((row.reason for row in rows.skipped_rows if row.line == line), "no such row")


def _spans(tokenizer: ChatTokenizer, ids: Tensor, response: Tensor) -> list[Span]:
    spans, start = [], 0
    for carries_loss, run in itertools.groupby(response.tolist()):
        length = len(list(run))
        text = tokenizer.decode(ids[start : start + length])
        spans.append(Span(text, length, carries_loss))
        start += length
    return spans
