"""Attention over packed rows: each pair's tokens see their own past and nothing else.

Registered with transformers under `NAME`; a model built with it passes the keyword `segments`
from its forward down to here, and creates no mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface

from dpo_cli.data.batching import PairSegments

NAME = "dpo_segments"

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
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)

    def attend(queries: slice, keys: Tensor, values: Tensor) -> Tensor:
        asked = query[:, :, queries]
        square = asked.shape[2] == keys.shape[2]
        return F.scaled_dot_product_attention(
            asked,
            keys,
            values,
            attn_mask=None if square else _bottom_right_causal(asked, keys),
            is_causal=square,
            dropout_p=dropout,
            scale=scaling,
        )

    if segments is None:
        output = attend(slice(None), key, value)
    else:
        outputs: list[Tensor] = []
        start = 0
        for pair in segments:
            prompt_end = start + pair.prompt
            chosen_end, end = prompt_end + pair.chosen, start + pair.total
            first, own = slice(start, chosen_end), slice(chosen_end, end)
            outputs.append(attend(first, key[:, :, first], value[:, :, first]))
            if pair.rejected:
                prompt = slice(start, prompt_end)
                keys = torch.cat([key[:, :, prompt], key[:, :, own]], dim=2)
                values = torch.cat([value[:, :, prompt], value[:, :, own]], dim=2)
                outputs.append(attend(own, keys, values))
            start = end
        output = torch.cat(outputs, dim=2)
    return output.transpose(1, 2).contiguous(), None


def _bottom_right_causal(query: Tensor, key: Tensor) -> Tensor:
    """(queries, keys) bool: the last query sees every key, each earlier one a key less."""
    queries, keys = query.shape[2], key.shape[2]
    ones = torch.ones(queries, keys, dtype=torch.bool, device=query.device)
    return ones.tril(diagonal=keys - queries)


AttentionInterface.register(NAME, segment_attention)
