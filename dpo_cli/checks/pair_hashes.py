"""Hashes of pairs, to find repeated and contradictory ones among millions of rows."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Sequence

import torch
from torch import Tensor

from dpo_cli.data.messages import Message

_ODD_FACTOR = 0x5851F42D4C957F2D
"""Multiplier of Knuth's MMIX linear congruential generator. It mixes two hashes into one that
depends on their order, so that a pair and its swapped copy differ."""


class PairHashes:
    """64-bit hashes of prompt, sides and answers of each row, in 44 bytes per row.

    Shape legend: K rows, U distinct rows, N row numbers.
    """

    def __init__(self) -> None:
        # Columns of an array: a list of Python integers would take ten times the memory.
        self._lines = array("i")
        self._prompts, self._chosen, self._rejected = array("q"), array("q"), array("q")
        self._answers = array("q"), array("q")

    def __len__(self) -> int:
        return len(self._lines)

    def add(
        self,
        line: int,
        prompt: Sequence[Message],
        chosen: Sequence[Message],
        rejected: Sequence[Message],
    ) -> None:
        """Add a row; row numbers must ascend.

        Raises:
            RecursionError: a message is nested too deeply for JSON.
        """
        # Hash first, so that an error leaves all columns of the same length.
        hashes = [_hash(messages) for messages in (prompt, chosen, rejected)]
        self._lines.append(line)
        for column, value in zip(
            (self._prompts, self._chosen, self._rejected), hashes, strict=True
        ):
            column.append(value)
        for column, messages in zip(self._answers, (chosen, rejected), strict=True):
            column.append(_hash(messages[-1:]))

    @property
    def prompts(self) -> int:
        """Number of distinct prompts."""
        return len(torch.unique(_tensor(self._prompts)))

    def prompts_of(self, lines: Tensor) -> Tensor:
        """Return the prompt hashes of some rows; rows that were not added are left out.

        Args:
            lines: (N,) int32, row numbers.

        Returns:
            (at most N,) int64.
        """
        known, prompts = _tensor(self._lines), _tensor(self._prompts)
        if not len(known):
            return prompts
        positions = torch.searchsorted(known, lines).clamp(max=len(known) - 1)
        return prompts[positions[known[positions] == lines]]

    def compare(self) -> tuple[dict[int, int], dict[int, int]]:
        """Find rows that repeat another row, and rows that contradict one (sides swapped).

        Returns:
            Two dicts from the row's number to the number of the first such row.
        """
        lines = _tensor(self._lines)
        if not len(lines):
            return {}, {}
        chosen, rejected = _tensor(self._chosen), _tensor(self._rejected)
        # The int64 product wraps around, which is what the mixing needs.
        distinct, index = torch.unique(
            chosen * _ODD_FACTOR + rejected, return_inverse=True
        )  # (U,), (K,)
        last = lines.new_full(distinct.shape, torch.iinfo(lines.dtype).max)
        first = last.scatter_reduce(0, index, lines, "amin")  # (U,)
        swapped = rejected * _ODD_FACTOR + chosen
        positions = torch.searchsorted(distinct, swapped).clamp(max=len(distinct) - 1)
        return (
            _by_line(lines, first[index], first[index] != lines),
            _by_line(lines, first[positions], distinct[positions] == swapped),
        )

    def rows_of_frequent_prompts(self, least: int, least_share: float) -> list[int]:
        """Return the rows whose prompt has at least this number and share of all rows."""
        lines, prompts = _tensor(self._lines), _tensor(self._prompts)
        _, index, counts = torch.unique(prompts, return_inverse=True, return_counts=True)
        is_frequent = counts >= max(least, least_share * len(lines))
        found: list[int] = lines[is_frequent[index]].tolist()
        return found

    def rows_of_frequent_answers(self, least: int, least_share: float) -> list[int]:
        """Return the rows in which a side has an answer that it gives to many prompts.

        Args:
            least: fewest prompts with the same answer.
            least_share: smallest share of all prompts with the same answer.
        """
        lines, prompts = _tensor(self._lines), _tensor(self._prompts)
        found: set[int] = set()
        for column in self._answers:
            answers = _tensor(column)
            # One row for each prompt with this answer: several rows may differ in the other side.
            answered = torch.unique(torch.stack([answers, prompts]), dim=1)  # (2, U)
            distinct, counts = torch.unique(answered[0], return_counts=True)
            frequent = distinct[counts >= max(least, least_share * self.prompts)]
            found.update(lines[torch.isin(answers, frequent)].tolist())
        return sorted(found)


def _tensor(column: array[int]) -> Tensor:
    dtype = torch.int32 if column.typecode == "i" else torch.int64
    return torch.frombuffer(column, dtype=dtype) if column else torch.empty(0, dtype=dtype)


def _by_line(lines: Tensor, others: Tensor, mask: Tensor) -> dict[int, int]:
    return dict(zip(lines[mask].tolist(), others[mask].tolist(), strict=True))


def _hash(messages: Sequence[Message]) -> int:
    # default=str: a Parquet file may hold values that JSON has no form for, such as dates.
    text = json.dumps(messages, sort_keys=True, ensure_ascii=False, default=str)
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)
