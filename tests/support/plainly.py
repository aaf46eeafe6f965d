"""The oracle: every side rendered by itself and encoded whole, every pair cut by itself."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import torch

from dpo_cli.data.chat import (
    EMPTY_THINK_BLOCK,
    REWRITES_TURNS,
    ChatTokenizer,
    Rendered,
    Tokenized,
    TokenizedPair,
)
from dpo_cli.data.pairs import Message, PreferencePair, SkippedRow


def encode_plainly(
    rows: Iterable[PreferencePair | SkippedRow],
    tokenizer: ChatTokenizer,
    *,
    empty_think_ratio: float,
    seed: int,
) -> tuple[list[TokenizedPair], list[SkippedRow]]:
    """Every pair at its full length, and the rows that are none."""
    pairs, skipped_rows = [], []
    for row in rows:
        if isinstance(row, SkippedRow):
            skipped_rows.append(row)
            continue
        draw = hashlib.sha256(f"{seed}:{row.line}".encode()).digest()
        keeps = int.from_bytes(draw[:8], "big") / 2**64 < empty_think_ratio
        if why := tokenizer.dropped_turn(row.chosen) or tokenizer.dropped_turn(row.rejected):
            skipped_rows.append(SkippedRow(row.line, "left-out", why))
            continue
        try:
            sides = [render(tokenizer, messages) for messages in (row.chosen, row.rejected)]
        except ValueError as error:
            skipped_rows.append(SkippedRow(row.line, "malformed", str(error)))
            continue
        if not keeps:
            sides = [side.without_empty_think() for side in sides]
        pairs.append(TokenizedPair(row.line, *(encode(tokenizer, side) for side in sides)))
    return pairs, skipped_rows


def cut_plainly(
    pairs: Iterable[TokenizedPair], skipped_rows: Iterable[SkippedRow], max_seq_len: int
) -> tuple[list[TokenizedPair], list[SkippedRow]]:
    """What a `max_seq_len` leaves of them, and all that is set aside."""
    cut = [truncate(pair, max_seq_len) for pair in pairs]
    lost = [row for row in cut if isinstance(row, SkippedRow)]
    return (
        [pair for pair in cut if isinstance(pair, TokenizedPair)],
        sorted([*skipped_rows, *lost], key=lambda row: row.line),
    )


def render(tokenizer: ChatTokenizer, messages: Sequence[Message]) -> Rendered:
    def apply(turns: Sequence[Message]) -> str:
        return tokenizer._tokenizer.apply_chat_template(list(turns), tokenize=False)

    try:
        text = apply(messages)
        answers = []
        for number, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            probes = [
                apply([*messages[:number], {"role": "assistant", "content": probe}])
                for probe in "ab"
            ]
            same = 0
            while same < min(map(len, probes)) and probes[0][same] == probes[1][same]:
                same += 1
            header = probes[0][:same].removesuffix(EMPTY_THINK_BLOCK)
            ended = apply(messages[: number + 1])
            if not (text.startswith(ended) and ended.startswith(header)):
                raise ValueError(REWRITES_TURNS)
            answers.append((len(header), len(ended)))
    except ValueError:
        raise
    except Exception as error:
        why = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise ValueError(f"the chat template fails: {why}") from error
    return Rendered(text, tuple(answers))


def encode(tokenizer: ChatTokenizer, rendered: Rendered) -> Tokenized:
    """Whole, with the offsets that the tokenizer itself gives."""
    encoding = tokenizer._backend.encode(rendered.text, add_special_tokens=False)
    response = [
        any(first <= start < end for first, end in rendered.answers)
        for start, _ in encoding.offsets
    ]
    return Tokenized(
        torch.tensor(encoding.ids, dtype=torch.int64), torch.tensor(response, dtype=torch.bool)
    )


def truncate(pair: TokenizedPair, max_seq_len: int) -> TokenizedPair | SkippedRow:
    """The pair with `max_seq_len` tokens of each side, or why that would teach nothing."""
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
    if torch.equal(chosen.ids, rejected.ids):
        return SkippedRow(
            pair.line, "identical", f"both sides are the same up to max_seq_len {max_seq_len}"
        )
    return TokenizedPair(pair.line, chosen, rejected)
