"""Attention over a packed row in one kernel call per layer, on NVIDIA GPUs.

Two kernels of torch compute sequences of several lengths at once; both are called through their
operator in `aten`, which has an autograd formula of its own. torch's Python function `varlen_attn`
calls the first of them, with 0.1 ms of overhead per call and, before torch 2.12, only for models
without grouped-query attention.

- flash attention: half precision, from compute capability 8.0 on
- memory-efficient attention: float32, and float16 on older GPUs
"""

from __future__ import annotations

from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor

from dpo_cli.compute.accelerator import capability
from dpo_cli.data.sequences import Sequences

Kernel = Literal["flash", "efficient"]

_ARGUMENTS = {
    "flash": "query key value cum_seq_q cum_seq_k max_q max_k dropout_p is_causal"
    " return_debug_mask scale",
    "efficient": "query key value bias cu_seqlens_q cu_seqlens_k max_seqlen_q max_seqlen_k"
    " dropout_p custom_mask_type compute_log_sumexp scale",
}
"""Arguments of the operators, which are internal to torch, as they are passed here."""
_FLASH_CAPABILITY = (8, 0)
_MAX_FLASH_HEAD_DIM = 256
_HEAD_DIM_MULTIPLE = 8
"""Both kernels load eight numbers of half precision at once, and four of float32."""
_SMALL_SHARED_MEMORY = ((8, 6), (8, 9), (12, 0))
"""Capabilities on which flash attention has no backward pass for head_dim above 192, up to 224."""
_BOTTOM_RIGHT_CAUSAL = 2
"""Mask type of memory-efficient attention in which the last query sees every key."""


def kernel_for(query: Tensor, key: Tensor, value: Tensor, dropout: float) -> Kernel | None:
    """Return the kernel that computes these tensors on their device; None if none does.

    Args:
        query, key, value: (1, heads, time, head_dim). The dtype of the value decides: the norms of
            queries and keys return float32 also under autocast.
        dropout: probability of dropping an attention weight; the calls here have none.
    """
    device = value.device
    if device.type == "cpu" or dropout or (generation := capability(device)) is None:
        return None
    head_dim, dtype = query.shape[-1], value.dtype
    if head_dim % _HEAD_DIM_MULTIPLE or value.shape[-1] % _HEAD_DIM_MULTIPLE:
        return None
    is_half = dtype in (torch.float16, torch.bfloat16)
    fits_flash = value.shape[-1] == head_dim <= _MAX_FLASH_HEAD_DIM and not (
        192 < head_dim <= 224 and generation in _SMALL_SHARED_MEMORY
    )
    if is_half and generation >= _FLASH_CAPABILITY and fits_flash and _is_known("flash"):
        return "flash"
    is_efficient = dtype in (torch.float16, torch.float32) or (
        dtype == torch.bfloat16 and generation >= _FLASH_CAPABILITY
    )
    return "efficient" if is_efficient and _is_known("efficient") else None


def varlen_attention(
    query: Tensor, key: Tensor, value: Tensor, sequences: Sequences, scaling: float, kernel: Kernel
) -> Tensor:
    """Compute causal attention within each sequence of a packed row.

    The mask is aligned to the bottom right: the last query sees all keys even if there are fewer
    queries than keys, as in a rejected part after a shared prompt.

    Args:
        query: (1, heads, time, head_dim).
        key, value: (1, key_value_heads, time, head_dim); the value may have another head_dim.
        sequences: from `locate_sequences`, on the device.
        scaling: factor of the scores.
        kernel: from `kernel_for`.

    Returns:
        (1, time, heads, head_dim of the value).
    """
    # Autocast covers torch's own attention, but not these operators. `squeeze` instead of an index,
    # because the gradient of an index allocates a tensor.
    queries, keys, values = (
        state.squeeze(0).transpose(0, 1).to(value.dtype) for state in (query, key, value)
    )
    keys, values = _gather(keys, values, sequences.key_index)
    lengths = (
        sequences.cu_seqlens_q,
        sequences.cu_seqlens_k,
        sequences.max_seqlen_q,
        sequences.max_seqlen_k,
    )
    if kernel == "flash":
        # Flash attention supports grouped queries; the other kernel needs repeated heads.
        output: Tensor = torch.ops.aten._flash_attention_forward(
            *(queries, keys, values, *lengths), 0.0, True, False, scale=scaling
        )[0]
        return output.unsqueeze(0)
    groups = queries.shape[1] // keys.shape[1]
    keys, values = (
        state.unsqueeze(2).expand(-1, -1, groups, -1).flatten(1, 2) for state in (keys, values)
    )
    result: tuple[Tensor, ...] = torch.ops.aten._efficient_attention_forward(
        *(queries.unsqueeze(0), keys.unsqueeze(0), values.unsqueeze(0), None, *lengths),
        *(0.0, _BOTTOM_RIGHT_CAUSAL, torch.is_grad_enabled()),
        scale=scaling,
    )
    return result[0]


def _gather(keys: Tensor, values: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Gather the rows `index` of keys and values, with one kernel for both and for their gradients.

    Args:
        keys, values: (time, heads, head_dim).
        index: (K,) int32.
    """
    if keys.shape != values.shape:
        return keys.index_select(0, index), values.index_select(0, index)
    gathered_keys, gathered_values = torch.stack([keys, values]).index_select(1, index).unbind()
    return gathered_keys, gathered_values


@cache
def _is_known(kernel: Kernel) -> bool:
    """Return True if this torch's operator takes the arguments that are passed here."""
    operator: Any = getattr(torch.ops.aten, f"_{kernel}_attention_forward", None)
    if operator is None:
        return False
    names = [argument.name for argument in operator.default._schema.arguments]
    *positional, last = _ARGUMENTS[kernel].split()
    return names[: len(positional)] == positional and last in names
