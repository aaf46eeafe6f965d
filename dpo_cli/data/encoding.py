"""Encoding of preference pairs to token ids, in blocks of rows."""

from __future__ import annotations

import hashlib
import itertools
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from enum import IntFlag
from typing import Literal

from dpo_cli.data.chat import REWRITES_TURNS, ChatTokenizer
from dpo_cli.data.encoders import as_tensor
from dpo_cli.data.messages import Message, shared_turns
from dpo_cli.data.pairs import PreferencePair, SkippedRow
from dpo_cli.data.rendered import (
    EMPTY_THINK_BLOCK,
    Rendered,
    RewrittenError,
    common_length,
    common_tokens,
    find_cuts,
)
from dpo_cli.data.tokens import EncodedRows, TokenizedPairs
from dpo_cli.data.truncation import Truncation

_ROWS_PER_BLOCK, _CHARACTERS_PER_BLOCK = 256, 1 << 22


ScoredTurns = Literal["all", "last"]


class Flag(IntFlag):
    """Facts about an encoded pair that `dpo check` reports."""

    PROMPT_DIFFERS = 1
    """The tokens of the prompt are not the first tokens of the whole, so that an answer begins
    after the longest common beginning."""
    TEMPLATE_CHANGES_WORDS = 2
    """The template leaves out or changes words of a scored answer."""
    LAST_ONLY = 4
    """The template rewrites earlier turns, so that only what follows the prompt is scored."""
    ALL_TURNS = 8
    """Every answer of the conversation is scored, not only what follows the prompt."""


def encode_pairs(
    rows: Iterable[PreferencePair | SkippedRow],
    tokenizer: ChatTokenizer,
    *,
    max_seq_len: int,
    empty_think_ratio: float,
    seed: int,
    scored_turns: ScoredTurns | None = None,
    truncation: Truncation | None = None,
    max_prompt_len: int | None = None,
) -> tuple[TokenizedPairs, Sequence[SkippedRow]]:
    """Encode every row in memory and truncate it; see `encode_rows`.

    Returns:
        The pairs to train on, in file order, and the skipped rows.
    """
    blocks = encode_rows(
        rows,
        tokenizer,
        empty_think_ratio=empty_think_ratio,
        seed=seed,
        scored_turns=scored_turns,
        truncation=truncation,
    )
    cut = EncodedRows.joined(blocks).cut(max_seq_len, truncation, max_prompt_len)
    return cut.kept, cut.skipped_rows


def encode_rows(
    rows: Iterable[PreferencePair | SkippedRow],
    tokenizer: ChatTokenizer,
    *,
    empty_think_ratio: float,
    seed: int,
    scored_turns: ScoredTurns | None = None,
    truncation: Truncation | None = None,
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
        scored_turns: "all" scores every answer of a conversation, "last" what follows the prompt.
            None: "all" for whole conversations, where the template allows it, else "last".
        truncation: "prompt_start" finds where prompts can be cut; None only where the prompt is
            explicit.
        on_progress: called with the number of rows done so far.

    Yields:
        Blocks of rows in file order; at least one block.
    """
    done = 0
    pending: Future[EncodedRows] | None = None
    unread: Counter[str] = Counter()
    with ThreadPoolExecutor(1) as helper:
        for chunk in itertools.chain(_chunks(rows), [[]]):
            rendered = [
                _render(row, tokenizer, empty_think_ratio, seed, scored_turns, truncation)
                for row in chunk
            ]
            if pending is not None:
                # `unread` is still that of the chunk of this block.
                block = replace(pending.result(), unread=unread)
                done += len(block) + len(block.skipped_rows)
                yield block
                on_progress(done)
            unread = Counter(
                name for row in chunk if isinstance(row, PreferencePair) for name in row.unread
            )
            if rendered:
                pending = helper.submit(_encode, rendered, tokenizer)
        if pending is None:
            yield _encode([], tokenizer)


@dataclass(frozen=True)
class _RenderedPair:
    """Pair with both sides rendered to text."""

    line: int
    sides: tuple[Rendered, Rendered]
    flags: Flag


def _render(
    row: PreferencePair | SkippedRow,
    tokenizer: ChatTokenizer,
    empty_think_ratio: float,
    seed: int,
    scored_turns: ScoredTurns | None,
    truncation: Truncation | None,
) -> _RenderedPair | SkippedRow:
    if isinstance(row, SkippedRow):
        return row
    conversations = row.chosen, row.rejected
    for messages in conversations:
        if dropped := tokenizer.template.dropped_turn(messages, row.tools):
            return SkippedRow(row.line, "left-out", dropped)
    try:
        sides, flags = _render_sides(row, tokenizer, scored_turns)
    except ValueError as error:
        return SkippedRow(row.line, "malformed", str(error))
    if any(side.is_rewritten for side in sides):
        flags |= Flag.PROMPT_DIFFERS
    if any(map(_loses_words, conversations, sides)):
        flags |= Flag.TEMPLATE_CHANGES_WORDS
    # If every pair keeps its think block, the block is the end of the prompt wherever the template
    # writes it there. Otherwise it is the model's own decision, and a part of the answer.
    if empty_think_ratio < 1:
        sides = [side.with_think_in_answers() for side in sides]
    pieces: list[str] = []
    prompt = row.chosen[: _prompt_turns(row)]
    if truncation == "prompt_start" or (truncation is None and row.prompt_turns is not None):
        pieces = tokenizer.prompt_pieces(prompt, row.tools)
    if not _keeps_empty_think(seed, row.line, empty_think_ratio):
        sides = [side.without_empty_think() for side in sides]
        pieces = [piece.replace(EMPTY_THINK_BLOCK, "") for piece in pieces]
    user_texts = [each["content"] for each in prompt if each["role"] == "user"]
    cuts = find_cuts(sides[0].text, pieces, user_texts, tokenizer.template.header_length)
    sides[0] = replace(sides[0], cuts=cuts)
    return _RenderedPair(row.line, (sides[0], sides[1]), flags)


def _render_sides(
    row: PreferencePair, tokenizer: ChatTokenizer, scored_turns: ScoredTurns | None
) -> tuple[list[Rendered], Flag]:
    """Render both sides; see `encode_rows` for `scored_turns`.

    Raises:
        ValueError: the template fails, or the scored answers cannot be located.
    """
    conversations = row.chosen, row.rejected
    flags = Flag(0)
    if scored_turns == "all" or (scored_turns is None and row.prompt_turns is None):
        try:
            return tokenizer.render(*conversations, tools=row.tools), Flag.ALL_TURNS
        except RewrittenError:
            if scored_turns == "all":
                raise ValueError(f'{REWRITES_TURNS}; set data.scored_turns = "last"') from None
            flags = Flag.LAST_ONLY
    first = _prompt_turns(row)
    try:
        return tokenizer.render(*conversations, tools=row.tools, first=first), flags
    except RewrittenError:
        return tokenizer.render(*conversations, tools=row.tools, first=first, as_one=True), flags


def _prompt_turns(row: PreferencePair) -> int:
    """Return the number of messages of the prompt; an answer follows on both sides."""
    conversations = row.chosen, row.rejected
    first = shared_turns(*conversations) if row.prompt_turns is None else row.prompt_turns
    return min(first, *map(_last_answer, conversations))


def _last_answer(messages: Sequence[Message]) -> int:
    return max(turn for turn, each in enumerate(messages) if each["role"] == "assistant")


def _loses_words(messages: Sequence[Message], side: Rendered) -> bool:
    """Return True if words of the last answer are not in its rendering, or not in their order."""
    message = messages[_last_answer(messages)]
    prompt, _ = side.answers[-1]
    written = side.text[common_length(prompt, side.text) :]
    texts = message["content"], message.get("reasoning_content")
    for text in texts:
        if not isinstance(text, str) or text.strip() in written:
            continue
        # Templates move the blanks around thoughts.
        if _without_blanks(text) not in _without_blanks(written):
            return True
    return False


def _without_blanks(text: str) -> str:
    return "".join(text.split()).replace("<think></think>", "")


def _encode(rows: Sequence[_RenderedPair | SkippedRow], tokenizer: ChatTokenizer) -> EncodedRows:
    pairs = [row for row in rows if isinstance(row, _RenderedPair)]
    skipped_rows = [row for row in rows if isinstance(row, SkippedRow)]
    sides = tokenizer.encode([side for pair in pairs for side in pair.sides], sides=2)
    ids = array(sides[0].ids.typecode if sides else "H")
    lines, lengths, shared, answers, answer_counts, flags = (array("i") for _ in range(6))
    cuts, cut_counts = array("i"), array("i")
    for pair, chosen, rejected in zip(pairs, sides[::2], sides[1::2], strict=True):
        if chosen.ids == rejected.ids:
            skipped_rows.append(SkippedRow(pair.line, "identical", "both sides are the same"))
            continue
        common = common_tokens(chosen.ids, rejected.ids)
        ids += chosen.ids
        ids += rejected.ids[common:]
        lines.append(pair.line)
        shared.append(common)
        differs = chosen.prompt_differs or rejected.prompt_differs
        # A cut must lie in the part that both sides share.
        shared_cuts = chosen.cuts if all(cut <= common for cut in chosen.cuts) else ()
        cuts.extend(shared_cuts)
        cut_counts.append(len(shared_cuts))
        flags.append(pair.flags | (Flag.PROMPT_DIFFERS if differs else 0))
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
        flags=as_tensor(flags),
        cuts=as_tensor(cuts),
        cut_counts=as_tensor(cut_counts),
        skipped_rows=tuple(sorted(skipped_rows, key=lambda row: row.line)),
    )


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
