"""Encoded rows in columns, and views of them truncated at one `max_seq_len`.

A run keeps no tensors per pair. A pair is built from the columns when it is indexed.

Shape legend: P pairs, A answers (of both sides of all pairs), N token ids.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import repeat
from typing import overload

import torch
from torch import Tensor

from dpo_cli.data.chat import Tokenized, TokenizedPair
from dpo_cli.data.pairs import SkippedRow
from dpo_cli.data.places import NO_PLACES, Places
from dpo_cli.data.truncation import Truncation, find_holes

SAME_ANSWERS = "both sides have the same answers to the same turns"
"""Reason why a pair that is not truncated is skipped as identical."""


@dataclass(frozen=True)
class EncodedRows:
    """Rows of a file at their full length.

    ids: (N,) uint16 or int32, pair by pair: chosen, then rejected without the shared beginning.
    lines: (P,) int32, ascending, the row number of each pair.
    lengths: (P, 2) int32, tokens of chosen and rejected.
    shared: (P,) int32, number of ids that both sides start with.
    answers: (A, 2) int32, [first, end) tokens of each answer within its side; see `Encoded`.
    answer_counts: (P, 2) int32, number of answers of each side.
    flags: (P,) int32, `dpo_cli.data.encoding.Flag` of each pair.
    cuts: (C,) int32, ascending tokens of a pair between which its prompt may be cut: the beginning
        of each user's text, and the end of the last one.
    cut_counts: (P,) int32, number of `cuts` of each pair; 0 if its prompt is not cut.
    skipped_rows: rows that are no pairs at any length, by line.
    unread: number of pairs with a value in each column that the format does not read.
    content: SHA-256 of the source, or "".
    places: mapping from row numbers to files.
    """

    ids: Tensor
    lines: Tensor
    lengths: Tensor
    shared: Tensor
    answers: Tensor
    answer_counts: Tensor
    flags: Tensor
    cuts: Tensor
    cut_counts: Tensor
    skipped_rows: Sequence[SkippedRow]
    unread: Mapping[str, int] = field(default_factory=dict)
    content: str = ""
    places: Places = NO_PLACES
    holes: Tensor | None = None
    """(P, 2) int32, first token and number of the tokens that `shorten_prompts` left out of `ids`;
    all other columns count without them."""

    @classmethod
    def joined(cls, blocks: Iterable[EncodedRows]) -> EncodedRows:
        """Concatenate blocks in memory."""
        parts = list(blocks)
        # The dtype of `ids` is unknown in a block without pairs.
        filled = [part for part in parts if len(part)] or parts[:1]
        return cls(
            ids=torch.cat([part.ids for part in filled]),
            lines=torch.cat([part.lines for part in filled]),
            lengths=torch.cat([part.lengths for part in filled]),
            shared=torch.cat([part.shared for part in filled]),
            answers=torch.cat([part.answers for part in filled]),
            answer_counts=torch.cat([part.answer_counts for part in filled]),
            flags=torch.cat([part.flags for part in filled]),
            cuts=torch.cat([part.cuts for part in filled]),
            cut_counts=torch.cat([part.cut_counts for part in filled]),
            skipped_rows=tuple(row for part in parts for row in part.skipped_rows),
            unread=sum((Counter(part.unread) for part in parts), Counter()),
            places=parts[0].places,
        )

    def __len__(self) -> int:
        return len(self.lines)

    def cut(
        self,
        max_seq_len: int,
        truncation: Truncation | None = None,
        max_prompt_len: int | None = None,
    ) -> Rows:
        """Truncate each side to `max_seq_len` tokens, and skip pairs without a difference to learn.

        Args:
            max_seq_len: tokens kept per side.
            truncation: "end" cuts the end of both sides; "prompt_start" and None first cut the
                prompts that have `cuts`; "drop" skips every pair that is too long.
            max_prompt_len: most tokens of a prompt, for "prompt_start" and "drop".
        """
        rows = self
        too_long = torch.zeros(len(self), dtype=torch.bool)
        if truncation == "drop":
            too_long = (self.lengths > max_seq_len).any(dim=1)
            too_long |= self.prompt_lengths > (max_prompt_len or max_seq_len)
        elif truncation != "end" and self.holes is None:
            rows = self.shorten_prompts(max_seq_len, max_prompt_len)
        return rows._cut_ends(max_seq_len, too_long)

    def _cut_ends(self, max_seq_len: int, too_long: Tensor) -> Rows:
        unanswered = self.response_tokens(max_seq_len) == 0
        is_lost = unanswered.any(dim=1) | self._are_alike(max_seq_len) | too_long
        lost = [
            self._why_too_long(index)
            if too_long[index]
            else self._why_lost(index, unanswered[index].tolist(), max_seq_len)
            for index in is_lost.nonzero().flatten().tolist()
        ]
        return Rows(
            TokenizedPairs(self, max_seq_len, (~is_lost).nonzero().flatten()),
            sorted([*self.skipped_rows, *lost], key=lambda row: row.line),
            self.content,
            self.places,
            self.unread,
        )

    def pair(self, index: int, max_seq_len: int) -> TokenizedPair:
        """Build one pair, with at most `max_seq_len` tokens per side."""
        chosen, rejected = self.lengths[index].tolist()
        start, shared = int(self._starts[index]), int(self.shared[index])
        hole, left_out = self.holes[index].tolist() if self.holes is not None else (0, 0)
        ids = self.ids[start : start + chosen + rejected - shared + left_out].to(torch.int64)
        if left_out:
            ids = torch.cat([ids[:hole], ids[hole + left_out :]])
        both = ids[:chosen], torch.cat([ids[:shared], ids[chosen:]])
        sides = []
        for side, full_ids in enumerate(both):
            # Clone: a slice would keep the truncated rest and the other side in memory.
            side_ids = full_ids[:max_seq_len].clone()
            response = torch.zeros(len(side_ids), dtype=torch.bool)
            first = int(self._first_answers[2 * index + side])
            count = int(self.answer_counts[index, side])
            for begin, end in self.answers[first : first + count].tolist():
                response[begin:end] = True
            sides.append(Tokenized(side_ids, response))
        return TokenizedPair(int(self.lines[index]), *sides)

    def response_tokens(self, max_seq_len: int) -> Tensor:
        """Count the response tokens of each side, (P, 2) int64; see `Tokenized.response_tokens`."""
        begins, ends = self.answers.clamp(min=1, max=max(max_seq_len, 1)).unbind(dim=1)
        return self._sums(ends - begins)

    def answers_begun(self, max_seq_len: int) -> Tensor:
        """Count the answers of each side that keep at least one token, (P, 2) int64."""
        return self._sums(self.answers[:, 0] < max_seq_len)

    def _why_too_long(self, index: int) -> SkippedRow:
        longest, prompt = int(self.lengths[index].max()), int(self.prompt_lengths[index])
        why = f"{longest} tokens, {prompt} of them in the prompt: too long for the profile's limits"
        return SkippedRow(int(self.lines[index]), "truncated", why)

    @cached_property
    def prompt_lengths(self) -> Tensor:
        """Tokens of each pair's prompt, (P,) int64: those before the last scored answer of chosen.

        The whole length of chosen if it has no scored answer.
        """
        last = self._first_answers[::2] + self.answer_counts[:, 0] - 1
        has_answer = self.answer_counts[:, 0] > 0
        begins = self.answers[last.clamp(min=0), 0] if len(self.answers) else last * 0
        return torch.where(has_answer, begins.to(torch.int64), self.lengths[:, 0].to(torch.int64))

    def shorten_prompts(self, max_seq_len: int, max_prompt_len: int | None = None) -> EncodedRows:
        """Leave out the beginning of prompts if a side is too long; see `find_holes`."""
        holes = find_holes(
            self.lengths.amax(dim=1).to(torch.int64),
            self.prompt_lengths,
            self.cuts,
            self.cut_counts,
            max_seq_len,
            max_prompt_len,
        )
        left_out = holes[:, 1:]
        if not left_out.any():
            return self
        sides = self._sides // 2
        first, removed = holes[sides, 0].unsqueeze(1), holes[sides, 1].unsqueeze(1)
        moved = torch.maximum(self.answers - removed, torch.minimum(self.answers, first))
        return replace(
            self,
            lengths=self.lengths - left_out,
            shared=self.shared - left_out[:, 0],
            answers=moved,
            holes=holes,
        )

    def _why_lost(self, index: int, unanswered: list[bool], max_seq_len: int) -> SkippedRow:
        line = int(self.lines[index])
        if not any(unanswered):
            is_cut = bool((self.lengths[index] > max_seq_len).any())
            why = f"both sides are the same up to max_seq_len {max_seq_len}"
            return SkippedRow(line, "identical", why if is_cut else SAME_ANSWERS)
        side = unanswered.index(True)
        return SkippedRow(
            line,
            "truncated",
            f"no response token of {('chosen', 'rejected')[side]!r} left at max_seq_len"
            f" {max_seq_len} ({int(self.lengths[index, side])} tokens)",
        )

    def _are_alike(self, max_seq_len: int) -> Tensor:
        """Return True for pairs with the same response tokens after the same tokens, (P,).

        Nothing can be learned from them, even if a turn without loss follows on one side.
        """
        lengths = self.lengths.clamp(max=max_seq_len)
        alike = (lengths[:, 0] == lengths[:, 1]) & (self.shared >= lengths[:, 0])
        begins, ends = self.answers.to(torch.int64).unbind(dim=1)
        ends = torch.where(begins < max_seq_len, ends.clamp(max=max_seq_len), 0)
        last = torch.zeros(2 * len(self), dtype=torch.int64)
        last = last.scatter_reduce(0, self._sides, ends, "amax").view(-1, 2)
        tokens = self.response_tokens(max_seq_len)
        maybe = (last[:, 0] == last[:, 1]) & (self.shared >= last[:, 0])
        maybe &= (tokens[:, 0] == tokens[:, 1]) & ~alike
        for index in maybe.nonzero().flatten().tolist():  # few pairs, if any
            pair, end = self.pair(index, max_seq_len), int(last[index, 0])
            alike[index] = torch.equal(pair.chosen.response[:end], pair.rejected.response[:end])
        return alike

    def _sums(self, of_answers: Tensor) -> Tensor:
        """Sum (A,) numbers over the answers of each side, (P, 2) int64."""
        sums = torch.zeros(2 * len(self), dtype=torch.int64)
        sums.index_add_(0, self._sides, of_answers.to(torch.int64))
        return sums.view(-1, 2)

    @cached_property
    def _starts(self) -> Tensor:
        """Index in `ids` of the first token of each pair, (P,) int64."""
        stored = self.lengths.sum(dim=1) - self.shared
        return _exclusive_sums(stored if self.holes is None else stored + self.holes[:, 1])

    @cached_property
    def _first_answers(self) -> Tensor:
        """Index in `answers` of the first answer of each side, (2P,) int64."""
        return _exclusive_sums(self.answer_counts.flatten())

    @cached_property
    def _sides(self) -> Tensor:
        """Side of each answer, (A,) int64: 2i and 2i + 1 for the sides of pair i."""
        return torch.arange(2 * len(self)).repeat_interleave(self.answer_counts.flatten())


class TokenizedPairs(Sequence[TokenizedPair]):
    """Sequence of pairs truncated at `max_seq_len`, each built when it is indexed.

    Args:
        rows: encoded rows of the file.
        max_seq_len: tokens kept per side.
        indices: (K,) int64, indices into `rows`, in order.
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
        """Select pairs by position."""
        chosen = self._indices[torch.tensor(positions, dtype=torch.int64)]
        return TokenizedPairs(self._rows, self._max_seq_len, chosen)

    @property
    def indices(self) -> Tensor:
        """Index of each pair in the encoded rows, (K,) int64."""
        return self._indices

    @property
    def lines(self) -> Tensor:
        """Row number of each pair, (K,) int32."""
        return self._rows.lines[self._indices]

    @property
    def flags(self) -> Tensor:
        """Facts about each pair, (K,) int32; see `dpo_cli.data.encoding.Flag`."""
        return self._rows.flags[self._indices]

    @property
    def places(self) -> Places:
        """Mapping from row numbers to files."""
        return self._rows.places

    @property
    def lengths(self) -> Tensor:
        """Tokens of chosen and rejected after truncation, (K, 2) int32."""
        return self._rows.lengths[self._indices].clamp(max=self._max_seq_len)

    @property
    def response_tokens(self) -> Tensor:
        """Response tokens of chosen and rejected, (K, 2) int64."""
        return self._rows.response_tokens(self._max_seq_len)[self._indices]

    @property
    def answers(self) -> Tensor:
        """Answers of chosen and rejected that carry loss, (K, 2) int64."""
        return self._rows.answers_begun(self._max_seq_len)[self._indices]

    @cached_property
    def computed_tokens(self) -> Tensor:
        """Positions that the packed layout computes per pair, (K,) int32."""
        lengths = self.lengths
        shared = torch.minimum(self._rows.shared[self._indices], lengths.amin(dim=1) - 1)
        return lengths.sum(dim=1, dtype=torch.int32) - 2 - shared

    def fingerprint(self) -> str:
        """Hash all rows and the selection of these pairs (hex SHA-256)."""
        rows = self._rows
        digest = hashlib.sha256(str(self._max_seq_len).encode())
        for column in (rows.ids, rows.lengths, rows.shared, rows.answers, rows.answer_counts):
            digest.update(f"{column.dtype} {column.shape}".encode())
            digest.update(column.contiguous().numpy().data)
        if rows.holes is not None:
            digest.update(rows.holes.numpy().data)
        digest.update(self._indices.numpy().data)
        return digest.hexdigest()

    def prompts(self) -> Iterator[bytes]:
        """Yield the ids before the first scored answer of each chosen side, as bytes."""
        rows, ids = self._rows, self._rows.ids.numpy()
        begins = rows.answers[rows._first_answers[::2][self._indices], 0].tolist()
        starts = rows._starts[self._indices].tolist()
        holes = rows.holes[self._indices].tolist() if rows.holes is not None else repeat((0, 0))
        for start, begin, (hole, left_out) in zip(starts, begins, holes, strict=False):
            prompt = ids[start : start + begin + left_out]
            yield prompt[:hole].tobytes() + prompt[hole + left_out :].tobytes()

    @property
    def shortened(self) -> Tensor:
        """Mask (K,) bool of pairs with a truncated side or prompt."""
        shortened = (self._rows.lengths[self._indices] > self._max_seq_len).any(dim=1)
        holes = self._rows.holes
        return shortened if holes is None else shortened | (holes[self._indices, 1] > 0)


@dataclass(frozen=True)
class Rows:
    """Pairs of a file at one `max_seq_len`, and the skipped rows by line.

    content: SHA-256 of the source, or "".
    places: mapping from row numbers to files.
    unread: see `EncodedRows`.
    """

    kept: TokenizedPairs
    skipped_rows: Sequence[SkippedRow]
    content: str = ""
    places: Places = NO_PLACES
    unread: Mapping[str, int] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """Number of rows of the file."""
        return len(self.kept) + len(self.skipped_rows)

    @property
    def tokens(self) -> int:
        """Positions that one epoch computes."""
        return int(self.kept.computed_tokens.sum())

    def facts(self) -> dict[str, int]:
        """Return the counts for JSON output."""
        return {
            "kept": len(self.kept),
            "skipped_rows": len(self.skipped_rows),
            "tokens": self.tokens,
        }


def _exclusive_sums(counts: Tensor) -> Tensor:
    """Return the exclusive cumulative sums of (n,) counts, int64."""
    sums: Tensor = counts.cumsum(dim=0, dtype=torch.int64)
    return sums - counts
