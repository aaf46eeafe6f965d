"""Encoding of preference pairs to token ids, in blocks of rows."""

from __future__ import annotations

import hashlib
import itertools
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from dpo_cli.data.chat import ChatTokenizer, Encoded, Rendered, common_length
from dpo_cli.data.encoders import as_tensor
from dpo_cli.data.pairs import PreferencePair, SkippedRow
from dpo_cli.data.tokens import EncodedRows, TokenizedPairs

_ROWS_PER_BLOCK, _CHARACTERS_PER_BLOCK = 256, 1 << 22


def encode_pairs(
    rows: Iterable[PreferencePair | SkippedRow],
    tokenizer: ChatTokenizer,
    *,
    max_seq_len: int,
    empty_think_ratio: float,
    seed: int,
) -> tuple[TokenizedPairs, Sequence[SkippedRow]]:
    """Encode every row in memory and truncate it; see `encode_rows`.

    Returns:
        The pairs to train on, in file order, and the skipped rows.
    """
    blocks = encode_rows(rows, tokenizer, empty_think_ratio=empty_think_ratio, seed=seed)
    cut = EncodedRows.joined(blocks).cut(max_seq_len)
    return cut.kept, cut.skipped_rows


def encode_rows(
    rows: Iterable[PreferencePair | SkippedRow],
    tokenizer: ChatTokenizer,
    *,
    empty_think_ratio: float,
    seed: int,
    on_progress: Callable[[int], None] = lambda rows: None,
) -> Iterator[EncodedRows]:
    """Encode every row at its full length.

    One block is rendered in Python while the block before it is encoded in Rust, which releases
    the GIL.

    Args:
        rows: from `dpo_cli.data.pairs.read_pairs`.
        tokenizer: renders and encodes conversations.
        empty_think_ratio: share of the pairs that keep their empty think blocks.
        seed: seed of that decision, which is the same for both sides of a pair.
        on_progress: called with the number of rows done so far.

    Yields:
        Blocks of rows in file order; at least one block.
    """
    done = 0
    pending: Future[EncodedRows] | None = None
    with ThreadPoolExecutor(1) as helper:
        for chunk in itertools.chain(_chunks(rows), [[]]):
            rendered = [_render(row, tokenizer, empty_think_ratio, seed) for row in chunk]
            if pending is not None:
                block = pending.result()
                done += len(block) + len(block.skipped_rows)
                yield block
                on_progress(done)
            if rendered:
                pending = helper.submit(_encode, rendered, tokenizer)
        if pending is None:
            yield _encode([], tokenizer)


@dataclass(frozen=True)
class _RenderedPair:
    """Pair with both sides rendered to text."""

    line: int
    chosen: Rendered
    rejected: Rendered


def _render(
    row: PreferencePair | SkippedRow, tokenizer: ChatTokenizer, empty_think_ratio: float, seed: int
) -> _RenderedPair | SkippedRow:
    if isinstance(row, SkippedRow):
        return row
    if dropped := tokenizer.dropped_turn(row.chosen) or tokenizer.dropped_turn(row.rejected):
        return SkippedRow(row.line, "left-out", dropped)
    try:
        chosen, rejected = tokenizer.render(row.chosen, row.rejected)
    except ValueError as error:
        return SkippedRow(row.line, "malformed", str(error))
    if not _keeps_empty_think(seed, row.line, empty_think_ratio):
        chosen, rejected = chosen.without_empty_think(), rejected.without_empty_think()
    return _RenderedPair(row.line, chosen, rejected)


def _encode(rows: Sequence[_RenderedPair | SkippedRow], tokenizer: ChatTokenizer) -> EncodedRows:
    pairs = [row for row in rows if isinstance(row, _RenderedPair)]
    skipped_rows = [row for row in rows if isinstance(row, SkippedRow)]
    sides = tokenizer.encode([side for pair in pairs for side in (pair.chosen, pair.rejected)])
    ids = array(sides[0].ids.typecode if sides else "H")
    lines, lengths, shared, answers, answer_counts = (array("i") for _ in range(5))
    for pair, chosen, rejected in zip(pairs, sides[::2], sides[1::2], strict=True):
        if chosen.ids == rejected.ids:
            skipped_rows.append(SkippedRow(pair.line, "identical", "both sides are the same"))
            continue
        common = _common_tokens(chosen, rejected)
        ids += chosen.ids
        ids += rejected.ids[common:]
        lines.append(pair.line)
        shared.append(common)
        for side in (chosen, rejected):
            lengths.append(len(side.ids))
            answer_counts.append(len(side.answers))
            answers.extend(itertools.chain.from_iterable(side.answers))
    return EncodedRows(
        ids=as_tensor(ids),
        lines=as_tensor(lines),
        lengths=as_tensor(lengths).view(-1, 2),
        shared=as_tensor(shared),
        answers=as_tensor(answers).view(-1, 2),
        answer_counts=as_tensor(answer_counts).view(-1, 2),
        skipped_rows=tuple(sorted(skipped_rows, key=lambda row: row.line)),
    )


def _common_tokens(first: Encoded, second: Encoded) -> int:
    return common_length(first.ids.tobytes(), second.ids.tobytes()) // first.ids.itemsize


def _keeps_empty_think(seed: int, line: int, ratio: float) -> bool:
    digest = hashlib.sha256(f"{seed}:{line}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64 < ratio


def _chunks(
    rows: Iterable[PreferencePair | SkippedRow],
) -> Iterator[list[PreferencePair | SkippedRow]]:
    chunk: list[PreferencePair | SkippedRow] = []
    characters = 0
    for row in rows:
        chunk.append(row)
        if isinstance(row, PreferencePair):
            characters += sum(
                len(text)
                for side in (row.chosen, row.rejected)
                for message in side
                for text in message.values()
                if isinstance(text, str)
            )
        if len(chunk) == _ROWS_PER_BLOCK or characters > _CHARACTERS_PER_BLOCK:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk
