"""Plain encoder for comparisons: renders, encodes and truncates one side and one pair at a time."""

from __future__ import annotations

import hashlib
import itertools
import os
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

import torch

from dpo_cli.data.chat import (
    REWRITES_TURNS,
    ChatTokenizer,
    Tokenized,
    TokenizedPair,
)
from dpo_cli.data.pairs import Message, PreferencePair, SkippedRow
from dpo_cli.data.rendered import EMPTY_THINK_BLOCK
from dpo_cli.data.tokens import SAME_ANSWERS


def encode_plainly(
    rows: Iterable[PreferencePair | SkippedRow],
    tokenizer: ChatTokenizer,
    *,
    empty_think_ratio: float,
    seed: int,
) -> tuple[list[TokenizedPair], list[SkippedRow]]:
    """Return all pairs at full length, and the rows that are no pairs."""
    pairs, skipped_rows = [], []
    for row in rows:
        if isinstance(row, SkippedRow):
            skipped_rows.append(row)
            continue
        draw = hashlib.sha256(f"{seed}:{row.line}".encode()).digest()
        keeps = int.from_bytes(draw[:8], "big") / 2**64 < empty_think_ratio
        dropped = tokenizer.template.dropped_turn
        if why := dropped(row.chosen, row.tools) or dropped(row.rejected, row.tools):
            skipped_rows.append(SkippedRow(row.line, "left-out", why))
            continue
        try:
            sides = sides_of(row, tokenizer, keeps=keeps, blocks_are_answers=empty_think_ratio < 1)
        except ValueError as error:
            skipped_rows.append(SkippedRow(row.line, "malformed", str(error)))
            continue
        pairs.append(TokenizedPair(row.line, *sides))
    return pairs, skipped_rows


def cut_plainly(
    pairs: Iterable[TokenizedPair], skipped_rows: Iterable[SkippedRow], max_seq_len: int
) -> tuple[list[TokenizedPair], list[SkippedRow]]:
    """Return the pairs after truncation to `max_seq_len`, and all skipped rows."""
    cut = [truncate(pair, max_seq_len) for pair in pairs]
    lost = [row for row in cut if isinstance(row, SkippedRow)]
    return (
        [pair for pair in cut if isinstance(pair, TokenizedPair)],
        sorted([*skipped_rows, *lost], key=lambda row: row.line),
    )


def sides_of(
    row: PreferencePair, tokenizer: ChatTokenizer, *, keeps: bool, blocks_are_answers: bool
) -> list[Tokenized]:
    """Return both sides with all scored answers, or with the part after the prompt."""
    first = row.prompt_turns or 0
    rendered = [render(tokenizer, messages, first) for messages in (row.chosen, row.rejected)]

    @cache
    def encoded(text: str) -> Any:
        text = text if keeps else text.replace(EMPTY_THINK_BLOCK, "")
        return tokenizer._backend.encode(text, add_special_tokens=False)

    @cache
    def ids_of(text: str) -> list[int]:
        return list(encoded(text).ids)

    @cache
    def begin(text: str, prompt: str) -> int:
        prompt = prompt.removesuffix(EMPTY_THINK_BLOCK) if blocks_are_answers else prompt
        both = zip(ids_of(prompt), ids_of(text), strict=False)
        return len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], both)))

    sides = []
    for text, answers in rendered:
        ids = ids_of(text)
        starts = [place for place, _ in encoded(text).offsets]
        response = torch.zeros(len(ids), dtype=torch.bool)
        for number, (prompt, ended) in enumerate(answers):
            # Both sides begin at the same token after the same prompt.
            start = min(
                begin(other, prompt)
                for other, other_answers in rendered
                if number < len(other_answers) and other_answers[number][0] == prompt
            )
            end = len(ended if keeps else ended.replace(EMPTY_THINK_BLOCK, ""))
            response[start : bisect_left(starts, end)] = True
        sides.append(Tokenized(torch.tensor(ids, dtype=torch.int64), response))
    return sides


def render(
    tokenizer: ChatTokenizer, messages: Sequence[Message], first: int = 0
) -> tuple[str, list[tuple[str, str]]]:
    """Return the text, and for each scored answer the prompt and the text up to its end."""

    def apply(turns: Sequence[Message], **options: bool) -> str:
        return tokenizer._tokenizer.apply_chat_template(list(turns), tokenize=False, **options)

    def header(turns: Sequence[Message]) -> str:
        if turns:
            return apply(turns, add_generation_prompt=True)
        return os.path.commonprefix([apply([{"role": "assistant", "content": c}]) for c in "ab"])  # noqa: RUF071

    try:
        text = apply(messages)
        answers = [
            (header(messages[:number]), apply(messages[: number + 1]))
            for number, message in enumerate(messages)
            if number >= first and message["role"] == "assistant"
        ]
    except Exception as error:
        why = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise ValueError(f"the chat template fails: {why}") from error
    if not all(text.startswith(ended) for _, ended in answers):
        raise ValueError(REWRITES_TURNS)
    return text, answers


def truncate(pair: TokenizedPair, max_seq_len: int) -> TokenizedPair | SkippedRow:
    """Truncate each side to `max_seq_len` tokens, or return a skipped row."""
    if torch.equal(pair.chosen.ids, pair.rejected.ids):
        return SkippedRow(pair.line, "identical", "both sides are the same")
    chosen, rejected = (
        Tokenized(side.ids[:max_seq_len], side.response[:max_seq_len])
        for side in (pair.chosen, pair.rejected)
    )
    for name, full, side in zip(
        ("chosen", "rejected"), (pair.chosen, pair.rejected), (chosen, rejected), strict=True
    ):
        if not side.response_tokens:
            return SkippedRow(
                pair.line,
                "truncated",
                f"no response token of {name!r} left at max_seq_len {max_seq_len}"
                f" ({len(full.ids)} tokens)",
            )
    answered = [int(side.response.nonzero().max()) + 1 for side in (chosen, rejected)]
    ids, masks = (
        [getattr(side, name)[:end] for side, end in zip((chosen, rejected), answered, strict=True)]
        for name in ("ids", "response")
    )
    if torch.equal(chosen.ids, rejected.ids) or (torch.equal(*ids) and torch.equal(*masks)):
        is_cut = max(len(pair.chosen.ids), len(pair.rejected.ids)) > max_seq_len
        why = f"both sides are the same up to max_seq_len {max_seq_len}"
        return SkippedRow(pair.line, "identical", why if is_cut else SAME_ANSWERS)
    return TokenizedPair(pair.line, chosen, rejected)
