"""A packed row's attention in one kernel a layer: variable-length flash attention, on CUDA.

The queries of the row lie as they are: prompt and chosen part of a pair, then its rejected part.
The keys are gathered once more, so that each of these sequences finds its own behind one another:
prompt and chosen, then prompt and rejected. What the kernel is told of them depends on the batch
alone, and is made once for all layers, in one copy to the device and without waiting for it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from dpo_cli.data.batching import PairSegments

KERNEL: Callable[..., Any] | None = None
"""torch's; None where this torch has none, or its first one, which has no grouped key heads."""
try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:
    pass
else:
    if "enable_gqa" in inspect.signature(varlen_attn).parameters:
        KERNEL = varlen_attn

_CAUSAL = (-1, 0)
"""The window in which a query sees all keys before it; from the bottom right, as flash counts."""
_WIDEST_HEAD, _HEAD_MULTIPLE = 256, 8
_OLDEST_CARD = (8, 0)


@dataclass(frozen=True)
class Sequences:
    """Where a packed row's causal sequences lie, as the kernel wants to know.

    keys: (K,) int32, the place in the row of each gathered key. query_ends, key_ends: (C + 1,)
    int32, 0 and then where each of the C sequences ends. longest_query, longest_key: tokens.
    """

    keys: Tensor
    query_ends: Tensor
    key_ends: Tensor
    longest_query: int
    longest_key: int


def locate(segments: Sequence[PairSegments], device: torch.device) -> Sequences:
    """The sequences of a row that is made of these pairs; those without a query left out."""
    keys: list[int] = []
    query_lengths, key_lengths = [], []
    start = 0
    for pair in segments:
        prompt_end = start + pair.prompt
        chosen_end, end = prompt_end + pair.chosen, start + pair.total
        for queries, own in (
            (pair.prompt + pair.chosen, range(prompt_end, chosen_end)),
            (pair.rejected, range(chosen_end, end)),
        ):
            if queries:
                keys += range(start, prompt_end)
                keys += own
                query_lengths.append(queries)
                key_lengths.append(pair.prompt + len(own))
        start = end
    ends = len(query_lengths) + 1
    whole = torch.tensor(
        [0, *accumulate(query_lengths), 0, *accumulate(key_lengths), *keys], dtype=torch.int32
    ).to(device, non_blocking=True)
    return Sequences(
        keys=whole[2 * ends :],
        query_ends=whole[:ends],
        key_ends=whole[ends : 2 * ends],
        longest_query=max(query_lengths),
        longest_key=max(key_lengths),
    )


def is_computed_by_kernel(key: Tensor, value: Tensor, dropout: float) -> bool:
    """Whether the kernel takes states like these, (1, heads, time, head_dim), on their device."""
    head_dim = value.shape[-1]
    return (
        KERNEL is not None
        and value.device.type == "cuda"
        and value.dtype in (torch.float16, torch.bfloat16)
        and not dropout
        and key.shape[-1] == head_dim <= _WIDEST_HEAD
        and head_dim % _HEAD_MULTIPLE == 0
        and torch.cuda.get_device_capability(value.device) >= _OLDEST_CARD
    )


def varlen_attention(
    query: Tensor, key: Tensor, value: Tensor, sequences: Sequences, scaling: float
) -> Tensor:
    """Causal attention within each sequence of the one row there is.

    Args:
        query: (1, heads, time, head_dim).
        key, value: (1, key_value_heads, time, head_dim).
        sequences: from `locate`.
        scaling: factor of the scores.

    Returns:
        (1, time, heads, head_dim).
    """
    assert KERNEL is not None
    # Norms of queries and keys may have widened them; the kernel knows nothing of autocast.
    rows = [state[0].transpose(0, 1).to(value.dtype) for state in (query, key, value)]
    output: Tensor = KERNEL(
        rows[0],
        rows[1].index_select(0, sequences.keys),
        rows[2].index_select(0, sequences.keys),
        sequences.query_ends,
        sequences.key_ends,
        sequences.longest_query,
        sequences.longest_key,
        scale=scaling,
        window_size=_CAUSAL,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return output.unsqueeze(0)
