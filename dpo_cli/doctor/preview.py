"""Pairs as training sees them, as text with the tokens that carry loss marked."""

from __future__ import annotations

import itertools

from torch import Tensor

from dpo_cli.data.batching import shared_inputs
from dpo_cli.data.chat import ChatTokenizer, Tokenized, TokenizedPair
from dpo_cli.data.tokens import Rows
from dpo_cli.doctor.notes import Notes
from dpo_cli.findings import PairPreview, Span


def preview(
    notes: Notes, rows: Rows, tokenizer: ChatTokenizer, line: int | None
) -> PairPreview | None:
    """The pair of a line of the file, or the first one that is kept."""
    found = 0 if line is None else _position(rows, line)
    if found is None:
        assert line is not None
        first = rows.kept[0].line
        notes.warn(
            "pair",
            f"line {line}",
            why_not_kept(rows, line),
            f"show another pair, such as --pair {first}",
        )
        return None
    return show_pair(tokenizer, rows.kept[found])


def show_pair(tokenizer: ChatTokenizer, pair: TokenizedPair) -> PairPreview:
    """One pair in runs of tokens that do, or do not, carry loss."""
    shared = shared_inputs(pair)

    def spans(side: Tokenized, start: int, end: int | None = None) -> tuple[Span, ...]:
        return tuple(_spans(tokenizer, side.ids[start:end], side.response[start:end]))

    return PairPreview(
        line=pair.line,
        shared=spans(pair.chosen, 0, shared),
        chosen=spans(pair.chosen, shared),
        rejected=spans(pair.rejected, shared),
    )


def why_not_kept(rows: Rows, line: int) -> str:
    """What is wrong with the row of a line that is not kept."""
    return next((row.reason for row in rows.set_aside if row.line == line), "no such row")


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
