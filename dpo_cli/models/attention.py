"""Attention over packed rows: the tokens of a sequence see their own past and nothing else.

A packed row holds several pairs, each as shared prompt, chosen part, rejected part. The chosen part
follows its prompt directly; the rejected part continues the same prompt but must not see the chosen
part. A dense (time, time) mask would express this, but costs more than it saves: it computes the
scores between unrelated pairs, which are most of the row, and excludes the flash kernels. So every
sequence is computed by itself: on an NVIDIA GPU by one call of a kernel for variable lengths
(`dpo_cli.models.varlen`), otherwise by torch's `scaled_dot_product_attention`, once per sequence.

`segment_attention` is registered with transformers under `NAME`. A model built with that
`attn_implementation` passes the keywords `segments` and `sequences` from its forward down to here,
and creates no mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface

from dpo_cli.data.sequences import PairSegments, Sequences
from dpo_cli.models.varlen import kernel_for, varlen_attention

NAME = "dpo_segments"

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


def _bottom_right_causal(query: Tensor, key: Tensor) -> Tensor:
    """Return a (queries, keys) bool mask in which the last query sees every key."""
    queries, keys = query.shape[2], key.shape[2]
    ones = torch.ones(queries, keys, dtype=torch.bool, device=query.device)
    return ones.tril(diagonal=keys - queries)


AttentionInterface.register(NAME, segment_attention)
