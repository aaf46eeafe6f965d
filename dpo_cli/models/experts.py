"""Mixtures of experts in half precision on a GPU: grouped matrix products under autocast.

transformers' loop over the experts follows autocast, but waits for the GPU at each expert to read
its number of tokens. Its grouped product does not wait, but computes in the dtype of the weights,
which is float32. `half_precision_experts` is the grouped product with weights cast as autocast
would cast them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS, ExpertsInterface

NAME = "dpo_grouped_mm"

_GROUPED = "grouped_mm"


class _InDtype:
    """Module whose parameters appear in another dtype."""

    def __init__(self, module: nn.Module, dtype: torch.dtype) -> None:
        self._module, self._dtype = module, dtype

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._module, name)
        return value.to(self._dtype) if isinstance(value, nn.Parameter) else value


def half_precision_experts(module: nn.Module, hidden_states: Tensor, *routing: Tensor) -> Tensor:
    """Compute experts by grouped matrix products in the dtype of autocast.

    Args:
        module: experts of transformers.
        hidden_states: (N, H).
        routing: experts of each token, and their weights; both (N, K).

    Returns:
        (N, H), in the dtype of `hidden_states`.
    """
    grouped = ALL_EXPERTS_FUNCTIONS[_GROUPED]
    device = hidden_states.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    # Autocast does not cast the arguments of the grouped product, so the weights are cast here.
    experts: Any = module if dtype is None else _InDtype(module, dtype)
    output: Tensor = grouped(experts, hidden_states, *routing)
    return output


ExpertsInterface.register(NAME, half_precision_experts)
