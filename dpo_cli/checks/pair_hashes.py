"""Which rows say the same: a digest of each, in columns, since there may be millions of them."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Sequence

import torch
from torch import Tensor

from dpo_cli.data.formats import Message

_ODD = 0x5851F42D4C957F2D
"""Of a linear congruential generator: mixes two hashes into one that tells them apart."""


class PairHashes:
    """What rows answer, and what their sides say: 64 bits each, 28 bytes a row.

    Shape legend: K rows, U different ones.
    """

    def __init__(self) -> None:
        self._lines = array("i")
        self._prompts, self._chosen, self._rejected = array("q"), array("q"), array("q")

    def __len__(self) -> int:
        return len(self._lines)

    def add(
        self,
        line: int,
        prompt: Sequence[Message],
        chosen: Sequence[Message],
        rejected: Sequence[Message],
    ) -> None:
        """Note a row, whose number is above those before.

        Raises:
            RecursionError: a message is nested as deep as JSON may be read.
        """
        hashes = [_digest(messages) for messages in (prompt, chosen, rejected)]
        self._lines.append(line)
        for column, digest in zip(
            (self._prompts, self._chosen, self._rejected), hashes, strict=True
        ):
            column.append(digest)

    @property
    def prompts(self) -> int:
        """How many different ones are answered."""
        return len(torch.unique(_tensor(self._prompts)))

    def prompts_of(self, lines: Tensor) -> Tensor:
        """Return the prompt hashes of those rows in `lines` ((N,), int32) that were noted."""
        own, prompts = _tensor(self._lines), _tensor(self._prompts)
        if not len(own):
            return prompts
        places = torch.searchsorted(own, lines).clamp(max=len(own) - 1)
        return prompts[places[own[places] == lines]]

    def compare(self) -> tuple[dict[int, int], dict[int, int]]:
        """Rows that say what an earlier one says, and rows that others say the opposite of.

        Returns:
            Each by its number, with the number of the first of the others.
        """
        lines = _tensor(self._lines)
        if not len(lines):
            return {}, {}
        chosen, rejected = _tensor(self._chosen), _tensor(self._rejected)
        sides, which = torch.unique(chosen * _ODD + rejected, return_inverse=True)  # (U,), (K,)
        last = lines.new_full(sides.shape, torch.iinfo(lines.dtype).max)
        first = last.scatter_reduce(0, which, lines, "amin")  # (U,)
        swapped = rejected * _ODD + chosen
        places = torch.searchsorted(sides, swapped).clamp(max=len(sides) - 1)
        return (
            _by_line(lines, first[which], first[which] != lines),
            _by_line(lines, first[places], sides[places] == swapped),
        )


def _tensor(column: array[int]) -> Tensor:
    """(K,) int32 of an array of "i", int64 of one of "q"."""
    dtype = torch.int32 if column.typecode == "i" else torch.int64
    return torch.frombuffer(column, dtype=dtype) if column else torch.empty(0, dtype=dtype)


def _by_line(lines: Tensor, others: Tensor, is_one: Tensor) -> dict[int, int]:
    return dict(zip(lines[is_one].tolist(), others[is_one].tolist(), strict=True))


def _digest(messages: Sequence[Message]) -> int:
    """64 bits; whatever a Parquet file may hold beside the text counts by its words."""
    text = json.dumps(messages, sort_keys=True, ensure_ascii=False, default=str)
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)
