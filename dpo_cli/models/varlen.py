"""Variable-length flash attention on CUDA: a packed row in one kernel call per layer.

The queries stay where they are in the row: shared prompt and chosen part of a pair, then its
rejected part. The kernel expects the keys of each sequence to be contiguous, so keys and values are
gathered into a second row: prompt, chosen, prompt, rejected. Its arguments (cu_seqlens and the
gather index) depend on the batch only; they are computed once for all layers.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from dpo_cli.data.batching import PairSegments

KERNEL: Callable[..., Any] | None = None
"""torch's `varlen_attn`; None if this torch has none, or one without grouped-query attention."""
try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:
    pass
else:
    if "enable_gqa" in inspect.signature(varlen_attn).parameters:
        KERNEL = varlen_attn

_CAUSAL = (-1, 0)
"""Window (left, right) of a causal mask: unlimited keys to the left, none to the right.

Flash attention aligns it to the bottom right, so the last query sees all keys even if there are
fewer queries than keys, as in a rejected part behind a shared prompt.
"""
# Limits of flash attention 2.
_MAX_HEAD_DIM, _HEAD_DIM_MULTIPLE = 256, 8
_MIN_CAPABILITY = (8, 0)


@dataclass(frozen=True)
class Sequences:
    """Position of the C causal sequences of a packed row, as arguments of the kernel.

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


def locate_sequences(segments: Sequence[PairSegments], device: torch.device) -> Sequences:
    """Return the sequences of a packed row; those without a query are left out.

    Args:
        segments: the pairs of the row, in order.
        device: where the kernel runs.
    """
    key_index: list[int] = []
    query_lengths, key_lengths = [], []
    for queries, key_slices in causal_sequences(segments):
        if queries.stop > queries.start:
            before = len(key_index)
            for part in key_slices:
                key_index += range(part.start, part.stop)
            query_lengths.append(queries.stop - queries.start)
            key_lengths.append(len(key_index) - before)
    ends = len(query_lengths) + 1
    # Everything in one tensor, so that one asynchronous copy suffices; a blocking copy would make
    # the CPU wait for the GPU at every micro-batch.
    packed = torch.tensor(
        [0, *accumulate(query_lengths), 0, *accumulate(key_lengths), *key_index],
        dtype=torch.int32,
    ).to(device, non_blocking=True)
    return Sequences(
        key_index=packed[2 * ends :],
        cu_seqlens_q=packed[:ends],
        cu_seqlens_k=packed[ends : 2 * ends],
        max_seqlen_q=max(query_lengths),
        max_seqlen_k=max(key_lengths),
    )


def supports_kernel(key: Tensor, value: Tensor, dropout: float) -> bool:
    """Return True if the kernel can compute these tensors on their device.

    Args:
        key, value: (1, heads, time, head_dim).
        dropout: probability of dropping an attention weight; the kernel has none.
    """
    head_dim = value.shape[-1]
    return (
        KERNEL is not None
        and value.device.type == "cuda"
        and value.dtype in (torch.float16, torch.bfloat16)
        and not dropout
        and key.shape[-1] == head_dim <= _MAX_HEAD_DIM
        and head_dim % _HEAD_DIM_MULTIPLE == 0
        and torch.cuda.get_device_capability(value.device) >= _MIN_CAPABILITY
    )


def varlen_attention(
    query: Tensor, key: Tensor, value: Tensor, sequences: Sequences, scaling: float
) -> Tensor:
    """Compute causal attention within each sequence of a packed row.

    Args:
        query: (1, heads, time, head_dim).
        key, value: (1, key_value_heads, time, head_dim).
        sequences: from `locate_sequences`.
        scaling: factor of the scores.

    Returns:
        (1, time, heads, head_dim).
    """
    assert KERNEL is not None
    # The norms of queries and keys compute in float32. Autocast casts their outputs for torch's own
    # attention, but it does not cover this kernel.
    rows = [state[0].transpose(0, 1).to(value.dtype) for state in (query, key, value)]
    output: Tensor = KERNEL(
        rows[0],
        rows[1].index_select(0, sequences.key_index),
        rows[2].index_select(0, sequences.key_index),
        sequences.cu_seqlens_q,
        sequences.cu_seqlens_k,
        sequences.max_seqlen_q,
        sequences.max_seqlen_k,
        scale=scaling,
        window_size=_CAUSAL,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return output.unsqueeze(0)
