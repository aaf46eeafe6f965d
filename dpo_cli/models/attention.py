"""Attention over packed rows: each pair's tokens see their own past and nothing else.

Registered with transformers under `NAME`; a model built with it passes the keyword `segments`
from its forward down to here, and creates no mask.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface

from dpo_cli.data.batching import PairSegments

NAME = "dpo_segments"

_WIDE = (torch.float32, torch.float64)
"""What plain products are exact in; torch's kernel keeps half precision's scores in float32."""
_BLOCK = 128
"""Queries that are computed together on a CPU."""
_KEPT = 1 << 23
"""Attention weights of a sequence and layer up to which they are kept for the gradient, not
computed again: 32 MB in float32, some 1,000 tokens with 8 heads."""

# What a model may hand over that this function does not compute; ignoring one is silently wrong.
_UNSUPPORTED = ("sliding_window", "softcap", "s_aux")


def segment_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    segments: Sequence[PairSegments] | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal attention, within each sequence of a packed row where `segments` describes one.

    A pair's prompt and chosen part are one causal sequence. Its rejected part asks the prompt and
    itself: fewer queries than keys, causal from the bottom right.

    Args:
        module: the attention layer; names how many query heads share a key head.
        query: (batch, heads, time, head_dim).
        key, value: (batch, key_value_heads, time, head_dim).
        attention_mask: None: padding lies behind what could see it.
        scaling: factor of the scores.
        dropout: probability of dropping a weight; 0 outside training.
        segments: the pairs of the one row there is; None for padded rows.

    Returns:
        (batch, time, heads, head_dim), and no weights.

    Raises:
        NotImplementedError: the model asks for a kind of attention that is not computed here.
    """
    unsupported = [name for name in _UNSUPPORTED if kwargs.get(name) is not None]
    if attention_mask is not None or unsupported:
        asked = ", ".join(unsupported) or "an attention mask"
        raise NotImplementedError(f"{type(module).__name__} needs {asked}")

    if segments is None:
        output = _flash_attention(query, key, value, scaling, dropout)
    elif query.device.type == "cpu" and value.dtype in _WIDE and not dropout:
        output = _SegmentAttention.apply(  # type: ignore[no-untyped-call]
            query, key, value, tuple(segments), scaling
        )
    else:
        output = _packed_flash_attention(query, key, value, segments, scaling, dropout)
    return output.transpose(1, 2).contiguous(), None


def _packed_flash_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    segments: Sequence[PairSegments],
    scaling: float,
    dropout: float,
) -> Tensor:
    """Each pair's sequences by themselves; see `segment_attention`."""
    # Split at once: cut out one by one, each part would send back a gradient of the whole row.
    queries = torch.split(
        query, [n for s in segments for n in (s.prompt + s.chosen, s.rejected)], 2
    )
    sizes = [n for s in segments for n in (s.prompt, s.chosen, s.rejected)]
    keys, values = torch.split(key, sizes, 2), torch.split(value, sizes, 2)
    outputs = []
    for pair in range(len(segments)):
        prompt, chosen, rejected = range(3 * pair, 3 * pair + 3)
        for asked, own in ((queries[2 * pair], chosen), (queries[2 * pair + 1], rejected)):
            if asked.shape[2]:
                its_keys = torch.cat([keys[prompt], keys[own]], dim=2)
                its_values = torch.cat([values[prompt], values[own]], dim=2)
                outputs.append(_flash_attention(asked, its_keys, its_values, scaling, dropout))
    return torch.cat(outputs, dim=2)


def _flash_attention(
    query: Tensor, key: Tensor, value: Tensor, scaling: float, dropout: float
) -> Tensor:
    """torch's own, which keeps no table of queries by keys."""
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
    """Attention within the segments of a packed row by plain products, with its own gradient.

    On a CPU this beats the flash kernel at these lengths. Block by block of queries: a block
    computes no keys that none of its queries may see, the query heads that share a key head are
    one matrix, only the block's own square needs a mask, and nothing is cut out of the row that
    would send back a gradient of its whole size. With P = softmax(Q K^T) and O = P V:
    dV = P^T dO, dP = dO V^T, dS = P * (dP - rowsum(dP * P)), dQ = dS K, dK = dS^T Q.
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
        _, heads, time, width = query.shape
        groups = key.shape[1]
        asked = (query[0] * scaling).view(groups, heads // groups, time, width)
        output = torch.empty_like(asked)
        ctx.weights = []
        for rows, parts in _sequences(segments):
            keys, values = _take(key[0], parts), _take(value[0], parts)
            is_kept = any(ctx.needs_input_grad) and keys.shape[1] * heads * _size(rows) <= _KEPT
            for block, seen in _blocks(rows, keys.shape[1]):
                weights = _weights(asked[:, :, block], keys[:, :seen])
                answer = weights @ values[:, :seen]
                output[:, :, block] = answer.view(output[:, :, block].shape)
                ctx.weights.append(weights if is_kept else None)
        ctx.save_for_backward(asked, key, value)
        ctx.segments, ctx.scaling = segments, scaling
        return output.view(1, heads, time, width)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        asked, key, value = ctx.saved_tensors
        by_output = gradients[0].view(asked.shape)
        by_query = torch.empty_like(asked)
        by_key, by_value = torch.zeros_like(key[0]), torch.zeros_like(value[0])
        kept = iter(ctx.weights)
        for rows, parts in _sequences(ctx.segments):
            keys, values = _take(key[0], parts), _take(value[0], parts)
            by_keys, by_values = torch.zeros_like(keys), torch.zeros_like(values)
            for block, seen in _blocks(rows, keys.shape[1]):
                weights = next(kept)
                if weights is None:
                    weights = _weights(asked[:, :, block], keys[:, :seen])
                upstream = by_output[:, :, block].flatten(1, 2)
                by_values[:, :seen] += weights.transpose(1, 2) @ upstream
                by_weights = upstream @ values[:, :seen].transpose(1, 2)
                by_scores = torch._softmax_backward_data(by_weights, weights, -1, weights.dtype)
                by_asked = by_scores @ keys[:, :seen]
                by_query[:, :, block] = by_asked.view(by_query[:, :, block].shape)
                by_keys[:, :seen] += by_scores.transpose(1, 2) @ asked[:, :, block].flatten(1, 2)
            _put_back(by_key, parts, by_keys)
            _put_back(by_value, parts, by_values)
        ctx.weights = None  # as large as all else together: not until the graph is gone
        by_query = by_query.mul_(ctx.scaling).view_as(gradients[0])
        return by_query, by_key.unsqueeze(0), by_value.unsqueeze(0), None, None


def _sequences(segments: Sequence[PairSegments]) -> Iterator[tuple[slice, tuple[slice, ...]]]:
    """Of each causal sequence in a row: its queries, and the parts of the row that are its keys."""
    start = 0
    for pair in segments:
        prompt_end = start + pair.prompt
        chosen_end, end = prompt_end + pair.chosen, start + pair.total
        first = slice(start, chosen_end)
        yield first, (first,)
        own = slice(chosen_end, end)
        yield own, (slice(start, prompt_end), own)
        start = end


def _blocks(rows: slice, keys: int) -> Iterator[tuple[slice, int]]:
    """The queries in blocks, and how many of the keys the last one of a block may see."""
    for start in range(rows.start, rows.stop, _BLOCK):
        stop = min(start + _BLOCK, rows.stop)
        yield slice(start, stop), keys - (rows.stop - stop)


def _size(rows: slice) -> int:
    return int(rows.stop - rows.start)


def _take(row: Tensor, parts: Sequence[slice]) -> Tensor:
    """(groups, keys, width): parts of a row, behind one another; a single one is not copied."""
    taken = [row[:, part] for part in parts]
    return taken[0] if len(taken) == 1 else torch.cat(taken, dim=1)


def _put_back(row: Tensor, parts: Sequence[slice], gradient: Tensor) -> None:
    start = 0
    for part in parts:
        row[:, part] += gradient[:, start : start + _size(part)]
        start += _size(part)


def _weights(asked: Tensor, keys: Tensor) -> Tensor:
    """Softmax of a block's scores, causal from the bottom right.

    Args:
        asked: (groups, heads of a group, queries, width), already scaled.
        keys: (groups, keys, width).

    Returns:
        (groups, heads of a group * queries, keys).
    """
    queries = asked.shape[2]
    scores = asked.flatten(1, 2) @ keys.transpose(1, 2)
    own = scores.view(*asked.shape[:3], -1)[..., keys.shape[1] - queries :]
    future = torch.ones(queries, queries, dtype=torch.bool, device=own.device).triu(1)
    own.masked_fill_(future, float("-inf"))
    return scores.softmax(dim=-1)


def _bottom_right_causal(query: Tensor, key: Tensor) -> Tensor:
    """(queries, keys) bool: the last query sees every key, each earlier one a key less."""
    queries, keys = query.shape[2], key.shape[2]
    ones = torch.ones(queries, keys, dtype=torch.bool, device=query.device)
    return ones.tril(diagonal=keys - queries)


AttentionInterface.register(NAME, segment_attention)
