"""Causal sequences of a packed row: where the queries and the keys of each lie.

A pair is stored as prompt, chosen, rejected. Prompt and chosen part are one causal sequence; the
rejected part is a second one, whose keys begin with the prompt. The queries of a kernel for
variable lengths stay where they are in the row. The kernel expects the keys of each sequence to be
contiguous, so keys and values are gathered into a second row: prompt, chosen, prompt, rejected.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class PairSegments:
    """Lengths of a pair's shared prompt, chosen and rejected parts in the packed row, in tokens."""

    prompt: int
    chosen: int
    rejected: int

    @property
    def total(self) -> int:
        """Number of tokens of the pair."""
        return self.prompt + self.chosen + self.rejected


@dataclass(frozen=True)
class Sequences:
    """Position of the C causal sequences of a packed row, as arguments of a kernel.

    Attributes:
        key_index: (K,) int32, for each gathered key its position in the row.
        cu_seqlens_q, cu_seqlens_k: (C + 1,) int32, cumulative lengths of the sequences in queries
            and in gathered keys; the first element is 0.
        max_seqlen_q, max_seqlen_k: longest sequence in queries and in keys.
    """

    key_index: Tensor
    cu_seqlens_q: Tensor
    cu_seqlens_k: Tensor
    max_seqlen_q: int
    max_seqlen_k: int


def causal_sequences(
    segments: Sequence[PairSegments],
) -> Iterator[tuple[slice, tuple[slice, ...]]]:
    """Yield the queries of each causal sequence of a packed row, and the slices that form its keys.

    Two sequences per pair: shared prompt and chosen part, then the rejected part, whose keys begin
    with the prompt. A sequence may be empty.
    """
    start = 0
    for pair in segments:
        prompt_end = start + pair.prompt
        chosen_end, end = prompt_end + pair.chosen, start + pair.total
        prompt_and_chosen = slice(start, chosen_end)
        yield prompt_and_chosen, (prompt_and_chosen,)
        rejected = slice(chosen_end, end)
        yield rejected, (slice(start, prompt_end), rejected)
        start = end


def locate_sequences(segments: Sequence[PairSegments]) -> Sequences:
    """Return the sequences of a packed row, on the CPU; those without a query are left out.

    Args:
        segments: the pairs of the row, in order.
    """
    keys: list[Tensor] = []
    query_lengths, key_lengths = [], []
    for queries, key_slices in causal_sequences(segments):
        if queries.stop > queries.start:
            keys += [torch.arange(p.start, p.stop, dtype=torch.int32) for p in key_slices]
            query_lengths.append(queries.stop - queries.start)
            key_lengths.append(sum(part.stop - part.start for part in key_slices))
    return Sequences(
        key_index=torch.cat(keys),
        cu_seqlens_q=_cumulative(query_lengths),
        cu_seqlens_k=_cumulative(key_lengths),
        max_seqlen_q=max(query_lengths),
        max_seqlen_k=max(key_lengths),
    )


def _cumulative(lengths: Sequence[int]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
