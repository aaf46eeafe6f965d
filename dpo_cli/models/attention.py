"""Attention over packed rows: each pair's tokens see their own past and nothing else.

Registered with transformers under `NAME`; a model built with it passes the keywords `segments` and
`sequences` from its forward down to here, and creates no mask.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface

from dpo_cli.data.batching import PairSegments
from dpo_cli.models.varlen import Sequences, is_computed_by_kernel, varlen_attention

NAME = "dpo_segments"

_WIDE = (torch.float32, torch.float64)
"""What plain products are exact in; torch's kernel keeps half precision's scores in float32."""
_BLOCK = 128
"""Queries that are computed together on a CPU."""
_KEPT = 1 << 23
"""Attention weights of a sequence and layer up to which they are kept for the gradient, not
computed again: 32 MB in float32, some 1,000 tokens with 8 heads."""

# What a model may hand over beside what is computed here. Anything else (a softcap, sinks, a bias
# by position) would change the answer, and ignoring it would be silently wrong.
_WITHOUT_EFFECT = (
    "position_ids",
    "position_embeddings",
    "use_cache",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
)


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
        sequences: the same for the variable-length kernel, where there may be one.
        sliding_window: keys that a query may see, itself included: at least as many as there are.
        is_causal: as the module says, where None.

    Returns:
        (batch, time, heads, head_dim of the values), and no weights.

    Raises:
        NotImplementedError: the model asks for a kind of attention that is not computed here.
    """
    asked = [name for name in kwargs if name not in _WITHOUT_EFFECT and _is_said(kwargs[name])]
    if attention_mask is not None:
        asked.append("an attention mask")
    if sliding_window is not None and _longest(query, segments) > sliding_window:
        asked.append(f"a sliding window of {sliding_window} tokens")
    if not (getattr(module, "is_causal", True) if is_causal is None else is_causal):
        asked.append("to see what follows")
    if asked:
        raise NotImplementedError(f"{type(module).__name__} needs {', '.join(asked)}")

    if segments is None:
        output = _flash_attention(query, key, value, scaling, dropout)
    elif query.device.type == "cpu" and value.dtype in _WIDE and not dropout:
        output = _SegmentAttention.apply(  # type: ignore[no-untyped-call]
            query, key, value, tuple(segments), scaling
        )
    elif sequences is not None and is_computed_by_kernel(key, value, dropout):
        return varlen_attention(query, key, value, sequences, scaling), None
    else:
        output = _packed_flash_attention(query, key, value, segments, scaling, dropout)
    return output.transpose(1, 2).contiguous(), None


def _is_said(value: Any) -> bool:
    return value is not None and value is not False


def _longest(query: Tensor, segments: Sequence[PairSegments] | None) -> int:
    """Tokens of the longest sequence that is attended to."""
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
        output = value.new_empty(*asked.shape[:3], value.shape[-1])
        kept: list[Tensor] = []
        for rows, parts in _sequences(segments):
            keys, values = _take(key[0], parts), _take(value[0], parts)
            is_kept = any(ctx.needs_input_grad) and _may_be_kept(heads, rows, keys)
            for block, seen in _blocks(rows, keys.shape[1]):
                weights = _weights(asked[:, :, block], keys[:, :seen])
                answer = weights @ values[:, :seen]
                output[:, :, block] = answer.view(output[:, :, block].shape)
                if is_kept:
                    kept.append(weights)
        # Nothing on ctx itself: checkpointing drops what is saved, and only that.
        ctx.save_for_backward(asked, key, value, *kept)
        ctx.segments, ctx.scaling = segments, scaling
        return output.view(1, heads, time, -1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        asked, key, value, *saved = ctx.saved_tensors
        by_output = gradients[0].view(*asked.shape[:3], -1)
        by_query = torch.empty_like(asked)
        by_key, by_value = torch.zeros_like(key[0]), torch.zeros_like(value[0])
        heads, kept = gradients[0].shape[1], iter(saved)
        for rows, parts in _sequences(ctx.segments):
            keys, values = _take(key[0], parts), _take(value[0], parts)
            by_keys, by_values = torch.zeros_like(keys), torch.zeros_like(values)
            for block, seen in _blocks(rows, keys.shape[1]):
                if _may_be_kept(heads, rows, keys):
                    weights = next(kept)
                else:
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
        by_query = by_query.mul_(ctx.scaling).view(1, heads, *asked.shape[2:])
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


def _may_be_kept(heads: int, rows: slice, keys: Tensor) -> bool:
    """Whether a sequence's attention weights are few enough to wait for the gradient."""
    return heads * _size(rows) * keys.shape[1] <= _KEPT


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
