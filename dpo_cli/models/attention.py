"""Attention over packed rows: the tokens of a sequence see their own past and nothing else.

A packed row holds several pairs, each as shared prompt, chosen part, rejected part. The chosen part
follows its prompt directly; the rejected part continues the same prompt but must not see the chosen
part. A dense (time, time) mask would express this, but costs more than it saves: it computes the
scores between unrelated pairs, which are most of the row, and excludes the flash kernels. So every
sequence is computed by itself:

- on a CPU in float32 or float64: `_SegmentAttention`, plain matrix products with their own gradient
- on an NVIDIA GPU: one call of a kernel for variable lengths (`dpo_cli.models.varlen`)
- otherwise: torch's `scaled_dot_product_attention`, once per sequence

`segment_attention` is registered with transformers under `NAME`. A model built with that
`attn_implementation` passes the keywords `segments` and `sequences` from its forward down to here,
and creates no mask.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface

from dpo_cli.data.sequences import PairSegments, Sequences, causal_sequences
from dpo_cli.models.varlen import kernel_for, varlen_attention

NAME = "dpo_segments"

_WIDE = (torch.float32, torch.float64)
"""Dtypes of `_SegmentAttention`. In half precision its scores would be rounded before the softmax;
torch's kernels keep them in float32."""
_QUERY_BLOCK = 128
"""Queries per block in `_SegmentAttention`.

A block computes the scores of the keys up to its last query, so half of one block's square is
wasted: larger blocks waste more, smaller ones make the matrix products inefficient.
"""
_MAX_SAVED_WEIGHTS = 1 << 23
"""Attention weights per sequence and layer up to which the forward pass saves them.

32 MB in float32, for example 1,000 tokens with 8 heads. Above, the backward pass computes them
again, so that memory does not grow with the square of the length.
"""

_IGNORED_ARGUMENTS = (
    "position_ids",
    "position_embeddings",
    "use_cache",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
)
"""Arguments that models pass and that do not change the result of attention.

Any other argument (a softcap, sinks, a position bias) would change it; ignoring one would be
silently wrong, so it is an error.
"""


def segment_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    segments: Sequence[PairSegments] | None = None,
    sequences: Sequences | None = None,
    sliding_window: int | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Compute causal attention, within each sequence of a packed row if `segments` is given.

    Shared prompt and chosen part of a pair are one causal sequence. The rejected part is a second
    one with fewer queries than keys: its queries see the prompt and the rejected part, with the
    causal mask aligned to the bottom right.

    Args:
        module: the attention layer.
        query: (batch, heads, time, head_dim).
        key, value: (batch, key_value_heads, time, head_dim); the value may have another head_dim.
        attention_mask: must be None. Padding lies to the right of every real token, so the causal
            mask already hides it.
        scaling: factor of the scores.
        dropout: probability of dropping an attention weight; 0 outside training.
        segments: the pairs of a packed row (batch = 1); None for padded rows.
        sequences: the same pairs for the kernels for variable lengths; None on a CPU.
        sliding_window: maximum number of keys that a query sees, itself included; must not be
            shorter than the longest sequence.
        is_causal: overrides the module's own attribute.

    Returns:
        (batch, time, heads, head_dim of the value), and None instead of attention weights.

    Raises:
        NotImplementedError: the model needs a kind of attention that is not implemented here.
    """
    unsupported = [
        name for name in kwargs if name not in _IGNORED_ARGUMENTS and _is_set(kwargs[name])
    ]
    if attention_mask is not None:
        unsupported.append("an attention mask")
    if sliding_window is not None and _max_length(query, segments) > sliding_window:
        unsupported.append(f"a sliding window of {sliding_window} tokens")
    if not (getattr(module, "is_causal", True) if is_causal is None else is_causal):
        unsupported.append("attention to later tokens")
    if unsupported:
        raise NotImplementedError(f"{type(module).__name__} needs {', '.join(unsupported)}")

    if segments is None:
        output = _flash_attention(query, key, value, scaling, dropout)
    elif query.device.type == "cpu" and value.dtype in _WIDE and not dropout:
        output = _SegmentAttention.apply(  # type: ignore[no-untyped-call]
            query, key, value, tuple(segments), scaling
        )
    elif sequences is not None and (kernel := kernel_for(query, key, value, dropout)) is not None:
        return varlen_attention(query, key, value, sequences, scaling, kernel), None
    else:
        output = _packed_flash_attention(query, key, value, segments, scaling, dropout)
    return output.transpose(1, 2).contiguous(), None


def _is_set(value: Any) -> bool:
    return value is not None and value is not False


def _max_length(query: Tensor, segments: Sequence[PairSegments] | None) -> int:
    """Return the length of the longest sequence in tokens."""
    if segments is None:
        return query.shape[2]
    return max(pair.prompt + max(pair.chosen, pair.rejected) for pair in segments)


def _packed_flash_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    segments: Sequence[PairSegments],
    scaling: float,
    dropout: float,
) -> Tensor:
    """Attend within each sequence of a packed row, one call per sequence.

    Shapes as in `segment_attention`; returns (1, heads, time, head_dim).
    """
    # One split per tensor: the gradient of each slice taken by itself would be a tensor of the size
    # of the whole row, almost all of it zeros.
    queries = torch.split(
        query, [n for s in segments for n in (s.prompt + s.chosen, s.rejected)], 2
    )
    sizes = [n for s in segments for n in (s.prompt, s.chosen, s.rejected)]
    keys, values = torch.split(key, sizes, 2), torch.split(value, sizes, 2)
    outputs = []
    for pair in range(len(segments)):
        prompt, chosen, rejected = range(3 * pair, 3 * pair + 3)
        for own_query, own in ((queries[2 * pair], chosen), (queries[2 * pair + 1], rejected)):
            if own_query.shape[2]:
                own_key = torch.cat([keys[prompt], keys[own]], dim=2)
                own_value = torch.cat([values[prompt], values[own]], dim=2)
                outputs.append(_flash_attention(own_query, own_key, own_value, scaling, dropout))
    return torch.cat(outputs, dim=2)


def _flash_attention(
    query: Tensor, key: Tensor, value: Tensor, scaling: float, dropout: float
) -> Tensor:
    """Call torch's attention, causal and aligned to the bottom right.

    Shapes as in `segment_attention`; returns (batch, heads, queries, head_dim).
    """
    # `is_causal=True` aligns the mask to the top left, which is right only for as many queries as
    # keys; it is preferred because an explicit mask excludes some of torch's kernels.
    is_square = query.shape[2] == key.shape[2]
    groups = query.shape[1] // key.shape[1]
    return F.scaled_dot_product_attention(
        query,
        key.repeat_interleave(groups, dim=1),
        value.repeat_interleave(groups, dim=1),
        attn_mask=None if is_square else _bottom_right_causal(query, key),
        is_causal=is_square,
        dropout_p=dropout,
        scale=scaling,
    )


class _SegmentAttention(torch.autograd.Function):
    """Attention within the sequences of a packed row by plain matrix products, for CPUs.

    Faster than the CPU flash kernel at the lengths of preference data, for four reasons:

    - Queries are processed in blocks, and a block skips all keys that none of its queries may see.
      Only the square of the block's own keys needs a mask.
    - The query heads that share a key head are rows of one matrix product (grouped-query attention
      without repeated keys).
    - Results and gradients are written into slices of tensors that are allocated once; autograd
      would allocate a gradient of the size of the row for each slice.
    - The attention weights of short sequences are saved instead of computed twice.

    With S = Q K^T (Q already scaled), P = softmax(S), O = P V, the gradients are:

        dV = P^T dO,  dP = dO V^T,  dS = P * (dP - rowsum(dP * P)),  dQ = dS K,  dK = dS^T Q
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        segments: tuple[PairSegments, ...],
        scaling: float,
    ) -> Tensor:
        _, heads, time, head_dim = query.shape
        groups = key.shape[1]
        # (groups, heads per group, time, head_dim): scaling the queries costs less than scaling the
        # scores.
        query = (query[0] * scaling).view(groups, heads // groups, time, head_dim)
        output = value.new_empty(*query.shape[:3], value.shape[-1])
        saved: list[Tensor] = []
        for query_slice, key_slices in causal_sequences(segments):
            keys, values = _take(key[0], key_slices), _take(value[0], key_slices)
            is_saved = any(ctx.needs_input_grad) and _fits_saved(heads, query_slice, keys)
            for block, visible in _query_blocks(query_slice, keys.shape[1]):
                weights = _attention_weights(query[:, :, block], keys[:, :visible])
                block_output = weights @ values[:, :visible]
                output[:, :, block] = block_output.view(output[:, :, block].shape)
                if is_saved:
                    saved.append(weights)
        # Every tensor goes through save_for_backward, none becomes an attribute of ctx: activation
        # checkpointing frees the saved tensors only.
        ctx.save_for_backward(query, key, value, *saved)
        ctx.segments, ctx.scaling = segments, scaling
        return output.view(1, heads, time, -1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        query, key, value, *saved = ctx.saved_tensors
        heads = gradients[0].shape[1]
        grad_output = gradients[0].view(*query.shape[:3], -1)
        # Each query belongs to one sequence, so every element of grad_query is written once. A
        # prompt's keys and values get a gradient from both responses, which are added.
        grad_query = torch.empty_like(query)
        grad_key, grad_value = torch.zeros_like(key[0]), torch.zeros_like(value[0])
        next_saved = iter(saved)
        for query_slice, key_slices in causal_sequences(ctx.segments):
            keys, values = _take(key[0], key_slices), _take(value[0], key_slices)
            grad_keys, grad_values = torch.zeros_like(keys), torch.zeros_like(values)
            for block, visible in _query_blocks(query_slice, keys.shape[1]):
                if _fits_saved(heads, query_slice, keys):
                    weights = next(next_saved)
                else:
                    weights = _attention_weights(query[:, :, block], keys[:, :visible])
                grad_block = grad_output[:, :, block].flatten(1, 2)
                grad_values[:, :visible] += weights.transpose(1, 2) @ grad_block
                grad_weights = grad_block @ values[:, :visible].transpose(1, 2)
                # One fused operation for P * (dP - rowsum(dP * P)). Masked weights are 0, so their
                # scores get no gradient.
                grad_scores = torch._softmax_backward_data(grad_weights, weights, -1, weights.dtype)
                grad_query[:, :, block] = (grad_scores @ keys[:, :visible]).view(
                    grad_query[:, :, block].shape
                )
                grad_keys[:, :visible] += grad_scores.transpose(1, 2) @ query[:, :, block].flatten(
                    1, 2
                )
            _add_back(grad_key, key_slices, grad_keys)
            _add_back(grad_value, key_slices, grad_values)
        grad_query = grad_query.mul_(ctx.scaling).view(1, heads, *query.shape[2:])
        return grad_query, grad_key.unsqueeze(0), grad_value.unsqueeze(0), None, None


def _query_blocks(queries: slice, keys: int) -> Iterator[tuple[slice, int]]:
    """Yield blocks of queries, each with the number of keys that its last query sees."""
    for start in range(queries.start, queries.stop, _QUERY_BLOCK):
        stop = min(start + _QUERY_BLOCK, queries.stop)
        yield slice(start, stop), keys - (queries.stop - stop)


def _size(part: slice) -> int:
    return int(part.stop - part.start)


def _fits_saved(heads: int, queries: slice, keys: Tensor) -> bool:
    return heads * _size(queries) * keys.shape[1] <= _MAX_SAVED_WEIGHTS


def _take(row: Tensor, slices: Sequence[slice]) -> Tensor:
    """Concatenate slices of a row, (groups, time, head_dim); a single slice stays a view."""
    parts = [row[:, part] for part in slices]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _add_back(row: Tensor, slices: Sequence[slice], gradient: Tensor) -> None:
    """Add the gradient of `_take` to the row, in place."""
    start = 0
    for part in slices:
        row[:, part] += gradient[:, start : start + _size(part)]
        start += _size(part)


def _attention_weights(query: Tensor, keys: Tensor) -> Tensor:
    """Return the softmax of a block's scores, causal and aligned to the bottom right.

    Args:
        query: (groups, heads per group, queries, head_dim), already scaled.
        keys: (groups, keys, head_dim), up to the key of the last query.

    Returns:
        (groups, heads per group * queries, keys).
    """
    queries = query.shape[2]
    scores = query.flatten(1, 2) @ keys.transpose(1, 2)
    # All earlier keys are visible to the whole block; only the last `queries` columns need a mask.
    own = scores.view(*query.shape[:3], -1)[..., keys.shape[1] - queries :]
    future = torch.ones(queries, queries, dtype=torch.bool, device=own.device).triu(1)
    own.masked_fill_(future, float("-inf"))
    return scores.softmax(dim=-1)


def _bottom_right_causal(query: Tensor, key: Tensor) -> Tensor:
    """Return a (queries, keys) bool mask in which the last query sees every key."""
    queries, keys = query.shape[2], key.shape[2]
    ones = torch.ones(queries, keys, dtype=torch.bool, device=query.device)
    return ones.tril(diagonal=keys - queries)


AttentionInterface.register(NAME, segment_attention)
