"""The encoded rows of a file in columns, and the pairs that one `max_seq_len` makes of them.

A run holds no tensor a pair: a pair is made of the columns when it is asked for.

Shape legend: P pairs, A answers (of both sides of all pairs), N token ids.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import overload

import torch
from torch import Tensor

from dpo_cli.data.chat import Tokenized, TokenizedPair
from dpo_cli.data.pairs import SkippedRow
from dpo_cli.data.sources import NO_PLACES, Places

_PIECE = 1 << 22
"""Ids that are looked at together: a file may have a thousand times as many."""


@dataclass(frozen=True)
class EncodedRows:
    """Every row of a file at its full length.

    ids: (N,) uint16 or int32. Pair by pair: chosen, then what of rejected follows the shared
        beginning. May end in ids that belong to nobody.
    lines: (P,) int32, ascending: where in the file each pair comes from.
    lengths: (P, 2) int32, tokens of chosen and rejected.
    shared: (P,) int32, ids that both sides begin with.
    answers: (A, 2) int32, [first, end) tokens of each answer within its side; see `Encoded`.
    answer_counts: (P, 2) int32, how many of them are each side's.
    skipped_rows: the rows that are no pairs at any length, by line.
    content: SHA-256 of what they were read from, if that was a source.
    places: what their numbers mean there.
    """

    ids: Tensor
    lines: Tensor
    lengths: Tensor
    shared: Tensor
    answers: Tensor
    answer_counts: Tensor
    skipped_rows: Sequence[SkippedRow]
    content: str = ""
    places: Places = NO_PLACES

    @classmethod
    def joined(cls, blocks: Iterable[EncodedRows]) -> EncodedRows:
        """One after another, in memory."""
        parts = list(blocks)
        # A block without a pair cannot know how wide ids are.
        filled = [part for part in parts if len(part)] or parts[:1]
        return cls(
            ids=torch.cat([part.ids for part in filled]),
            lines=torch.cat([part.lines for part in filled]),
            lengths=torch.cat([part.lengths for part in filled]),
            shared=torch.cat([part.shared for part in filled]),
            answers=torch.cat([part.answers for part in filled]),
            answer_counts=torch.cat([part.answer_counts for part in filled]),
            skipped_rows=tuple(row for part in parts for row in part.skipped_rows),
            places=parts[0].places,
        )

    def __len__(self) -> int:
        return len(self.lines)

    def without_rest(self) -> EncodedRows:
        """The same, with the ids that belong to a pair alone."""
        owned = int((self.lengths.sum(dim=1) - self.shared).sum())
        return replace(self, ids=self.ids[:owned])

    def cut(self, max_seq_len: int) -> Rows:
        """The rows with `max_seq_len` tokens of each side, and those that would teach nothing."""
        lengths = self.lengths.clamp(max=max_seq_len)
        unanswered = self.response_tokens(max_seq_len) == 0
        alike = (lengths[:, 0] == lengths[:, 1]) & (self.shared >= lengths[:, 0])
        is_lost = unanswered.any(dim=1) | alike
        lost = [
            self._why_lost(index, unanswered[index].tolist(), max_seq_len)
            for index in is_lost.nonzero().flatten().tolist()
        ]
        return Rows(
            TokenizedPairs(self, max_seq_len, (~is_lost).nonzero().flatten()),
            sorted([*self.skipped_rows, *lost], key=lambda row: row.line),
            self.content,
            self.places,
        )

    def pair(self, index: int, max_seq_len: int) -> TokenizedPair:
        """One of the P pairs, with `max_seq_len` tokens of each side."""
        chosen, rejected = self.lengths[index].tolist()
        start, shared = int(self._starts[index]), int(self.shared[index])
        ids = self.ids[start : start + chosen + rejected - shared].to(torch.int64)
        both = ids[:chosen], torch.cat([ids[:shared], ids[chosen:]])
        sides = []
        for side, its_ids in enumerate(both):
            # Copies, since a slice would keep what is cut off, and the other side, in memory.
            its_ids = its_ids[:max_seq_len].clone()
            response = torch.zeros(len(its_ids), dtype=torch.bool)
            first = int(self._first_answers[2 * index + side])
            count = int(self.answer_counts[index, side])
            for begin, end in self.answers[first : first + count].tolist():
                response[begin:end] = True
            sides.append(Tokenized(its_ids, response))
        return TokenizedPair(int(self.lines[index]), *sides)

    def response_tokens(self, max_seq_len: int) -> Tensor:
        """(P, 2) int64: `Tokenized.response_tokens` of each side."""
        begins, ends = self.answers.clamp(min=1, max=max(max_seq_len, 1)).unbind(dim=1)
        return self._sums(ends - begins)

    def answers_begun(self, max_seq_len: int) -> Tensor:
        """(P, 2) int64: answers of each side of which a token is left."""
        return self._sums(self.answers[:, 0] < max_seq_len)

    def doubled(self, token_ids: Sequence[int]) -> Tensor:
        """(P,) bool, whether one of these tokens follows itself on a side."""
        ids = self.ids[: int((self.lengths.sum(dim=1) - self.shared).sum())]
        wanted = torch.tensor(token_ids, dtype=torch.int32).to(ids.dtype)
        if ids.dtype == torch.uint16:  # which torch can store, and hardly compute with
            ids, wanted = ids.view(torch.int16), wanted.view(torch.int16)
        found = torch.zeros(len(self), dtype=torch.bool)
        pieces = range(0, max(1, len(ids)), _PIECE)
        places = torch.cat([_doubled(ids, wanted, begin) for begin in pieces])
        pairs = torch.searchsorted(self._starts, places, right=True) - 1
        # Not where one pair, or one side, ends and the next begins.
        within = places - self._starts[pairs]
        found[pairs[(within != 0) & (within != self.lengths[pairs, 0])]] = True
        # What is rejected goes on where the shared beginning ends.
        goes_on = ((self.lengths[:, 1] > self.shared) & (self.shared > 0)).nonzero().flatten()
        first = (self._starts + self.lengths[:, 0])[goes_on]
        last_shared = (self._starts + self.shared - 1)[goes_on]
        found[goes_on] |= (ids[first] == ids[last_shared]) & torch.isin(ids[first], wanted)
        return found

    def _why_lost(self, index: int, unanswered: list[bool], max_seq_len: int) -> SkippedRow:
        line = int(self.lines[index])
        if not any(unanswered):
            why = f"both sides are the same up to max_seq_len {max_seq_len}"
            return SkippedRow(line, "identical", why)
        side = unanswered.index(True)
        return SkippedRow(
            line,
            "truncated",
            f"no response token of {('chosen', 'rejected')[side]!r} left at max_seq_len"
            f" {max_seq_len} ({int(self.lengths[index, side])} tokens)",
        )

    def _sums(self, of_answers: Tensor) -> Tensor:
        """(P, 2) int64, sums over each side's answers of (A,) numbers."""
        sums = torch.zeros(2 * len(self), dtype=torch.int64)
        sums.index_add_(0, self._sides, of_answers.to(torch.int64))
        return sums.view(-1, 2)

    @cached_property
    def _starts(self) -> Tensor:
        """(P,) int64, where in `ids` each pair begins."""
        return _exclusive_sums(self.lengths.sum(dim=1) - self.shared)

    @cached_property
    def _first_answers(self) -> Tensor:
        """(2P,) int64, where in `answers` those of each side begin."""
        return _exclusive_sums(self.answer_counts.flatten())

    @cached_property
    def _sides(self) -> Tensor:
        """(A,) int64, the side of each answer: 2i and 2i + 1 are those of pair i."""
        return torch.arange(2 * len(self)).repeat_interleave(self.answer_counts.flatten())


class TokenizedPairs(Sequence[TokenizedPair]):
    """Some pairs of a file, cut at `max_seq_len`; each is made when it is asked for.

    Args:
        rows: of the file.
        max_seq_len: tokens of a side that are kept.
        indices: (K,) int64, which of `rows` these are, in their order here.
    """

    def __init__(self, rows: EncodedRows, max_seq_len: int, indices: Tensor) -> None:
        self._rows = rows
        self._max_seq_len = max_seq_len
        self._indices = indices

    def __len__(self) -> int:
        return len(self._indices)

    @overload
    def __getitem__(self, index: int) -> TokenizedPair: ...

    @overload
    def __getitem__(self, index: slice) -> TokenizedPairs: ...

    def __getitem__(self, index: int | slice) -> TokenizedPair | TokenizedPairs:
        if isinstance(index, slice):
            return self.select(range(len(self))[index])
        return self._rows.pair(int(self._indices[index]), self._max_seq_len)

    def select(self, positions: Sequence[int]) -> TokenizedPairs:
        """Those at the given positions."""
        chosen = self._indices[torch.tensor(positions, dtype=torch.int64)]
        return TokenizedPairs(self._rows, self._max_seq_len, chosen)

    @property
    def lines(self) -> Tensor:
        """(K,) int32, where in the file each pair comes from."""
        return self._rows.lines[self._indices]

    @property
    def places(self) -> Places:
        """What these numbers mean."""
        return self._rows.places

    @property
    def lengths(self) -> Tensor:
        """(K, 2) int32, tokens of chosen and rejected."""
        return self._rows.lengths[self._indices].clamp(max=self._max_seq_len)

    @property
    def response_tokens(self) -> Tensor:
        """(K, 2) int64, `Tokenized.response_tokens` of chosen and rejected."""
        return self._rows.response_tokens(self._max_seq_len)[self._indices]

    @property
    def answers(self) -> Tensor:
        """(K, 2) int64, answers of chosen and rejected that carry loss: runs of tokens."""
        return self._rows.answers_begun(self._max_seq_len)[self._indices]

    @cached_property
    def computed_tokens(self) -> Tensor:
        """(K,) int32, positions the packed layout computes: what both sides share, once."""
        lengths = self.lengths
        shared = torch.minimum(self._rows.shared[self._indices], lengths.amin(dim=1) - 1)
        return lengths.sum(dim=1, dtype=torch.int32) - 2 - shared

    def fingerprint(self) -> str:
        """Hex SHA-256 over every token and mask of these pairs, and more: of all rows."""
        rows = self._rows.without_rest()
        digest = hashlib.sha256(str(self._max_seq_len).encode())
        for column in (rows.ids, rows.lengths, rows.shared, rows.answers, rows.answer_counts):
            digest.update(f"{column.dtype} {column.shape}".encode())
            digest.update(column.contiguous().numpy().data)
        digest.update(self._indices.numpy().data)
        return digest.hexdigest()

    @property
    def shortened(self) -> Tensor:
        """(K,) bool, whether a side loses its end."""
        return (self._rows.lengths[self._indices] > self._max_seq_len).any(dim=1)


@dataclass(frozen=True)
class Rows:
    """The pairs of a file at one `max_seq_len`, and the rows that are none, by line.

    content: SHA-256 of what they were read from, if that was a source.
    places: what their numbers mean there.
    """

    kept: TokenizedPairs
    skipped_rows: Sequence[SkippedRow]
    content: str = ""
    places: Places = NO_PLACES

    @property
    def total(self) -> int:
        """Rows of the file."""
        return len(self.kept) + len(self.skipped_rows)

    @property
    def tokens(self) -> int:
        """Positions one epoch computes."""
        return int(self.kept.computed_tokens.sum())

    def facts(self) -> dict[str, int]:
        """For programs."""
        return {
            "kept": len(self.kept),
            "skipped_rows": len(self.skipped_rows),
            "tokens": self.tokens,
        }


def _doubled(ids: Tensor, wanted: Tensor, begin: int) -> Tensor:
    """int64, where in a piece of (N,) ids one of `wanted` follows itself."""
    piece = ids[begin : begin + _PIECE + 1]
    is_one = (piece[1:] == piece[:-1]) & torch.isin(piece[1:], wanted)
    return is_one.nonzero().flatten() + begin + 1


def _exclusive_sums(counts: Tensor) -> Tensor:
    """(n,) int64, the sum of all before each."""
    sums: Tensor = counts.cumsum(dim=0, dtype=torch.int64)
    return sums - counts
