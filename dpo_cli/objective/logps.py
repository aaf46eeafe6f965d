"""From logits to the log-probability of a response.

Shape legend: S sequences (chosen first, then rejected), P pairs (S = 2P), T time, N targets
(response positions of a packed batch), H hidden, V vocabulary.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Reduction = Literal["mean", "sum"]


def gather_logps(logits: Tensor, labels: Tensor) -> Tensor:
    """Log-softmax over V, gathered at the labels.

    Args:
        logits: (..., V), in any float type; half precision is widened to float32 first.
        labels: (...), token ids; label t is the token that follows input t.

    Returns:
        (...), log p(label | everything before it), in nats; float32, or float64 for such logits.
    """
    wide = logits if logits.dtype == torch.float64 else logits.float()
    logps = torch.log_softmax(wide, dim=-1)
    return logps.gather(-1, labels.unsqueeze(-1)).squeeze(-1)


def sequence_logps(token_logps: Tensor, mask: Tensor, reduction: Reduction) -> Tensor:
    """The log-probability of each response.

    The sum runs in float64: a response of 1,000 tokens sums to about -5,000 nats, where float32 is
    4.9e-4 wide, as much as a whole step's change of the margin.

    Args:
        token_logps: (S, T), in nats.
        mask: (S, T), true where a token belongs to the response.
        reduction: "sum" (Rafailov et al. 2023, eq. 7) or "mean" per response token.

    Returns:
        (S,), float64. A sequence without a response token has 0 under both.
    """
    sums = torch.where(mask, token_logps.double(), 0.0).sum(dim=-1)
    return sums if reduction == "sum" else sums / mask.sum(dim=-1).clamp(min=1)
