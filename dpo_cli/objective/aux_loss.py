"""Load-balancing loss of mixture-of-experts layers, as both MiniMind versions define it.

Computed from the router's logits, because the aux_loss inside transformers is another function.

Shape legend: N tokens of a batch, E experts, G segments (runs of tokens), S sequences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

AuxLossKind = Literal["sequence", "batch"]


@dataclass(frozen=True)
class TokenGroups:
    """Assignment of tokens to sequences; two sequences may share tokens (a shared prompt).

    Attributes:
        segment_ids: (N,) int64, the segment of each token.
        members: (S, G), 1.0 if the segment is part of the sequence, else 0.0. A segment in no
            sequence (padding) is not counted; a segment in two sequences counts once in each.
    """

    segment_ids: Tensor
    members: Tensor

    def sum_by_sequence(self, values: Tensor) -> Tensor:
        """Sum values of tokens, (N, E), over the tokens of each sequence, (S, E)."""
        # First by segment, then by sequence: a shared prompt is added up once.
        segments = values.new_zeros(self.members.shape[1], values.shape[1])
        segments = segments.index_add(0, self.segment_ids, values)
        return self.members.to(values.dtype) @ segments


def aux_loss(
    router_logits: Sequence[Tensor], groups: TokenGroups, top_k: int, kind: AuxLossKind
) -> Tensor:
    """Return the load-balancing loss, summed over layers; perfectly even use gives 1 per layer.

    For a set of T tokens, let c_e be the number of tokens routed to expert e, and P_e the mean
    router probability of e:

    - "sequence" (MiniMind version 2, `seq_aux`; DeepSeek-MoE, arXiv:2401.06066, eq. 12 to 14):
      E * sum_e (c_e / (k T)) P_e for each sequence, then the mean over sequences.
    - "batch" (MiniMind version 3; Switch Transformer, arXiv:2101.03961, eq. 4 to 6):
      E * sum_e (c_e / T) P_e over all tokens at once; without the division by k.

    Args:
        router_logits: one (N, E) tensor per layer, before the softmax.
        groups: the sequence of each token.
        top_k: k, experts per token.
        kind: one of the two definitions.

    Returns:
        A scalar, float32 or float64, not yet multiplied by its coefficient.
    """
    total = router_logits[0].new_zeros((), dtype=torch.float32)
    for logits in router_logits:
        # In half precision, probabilities summed over a thousand tokens would lose their last
        # digits.
        wide = logits if logits.dtype == torch.float64 else logits.float()
        experts = logits.shape[-1]
        probabilities = wide.softmax(dim=-1)
        # One-hot over the chosen experts; only `probabilities` carries a gradient.
        routed = torch.zeros_like(probabilities).scatter(
            -1, probabilities.topk(top_k, dim=-1).indices, 1.0
        )
        counts = groups.sum_by_sequence(routed)
        sums = groups.sum_by_sequence(probabilities)
        tokens = groups.sum_by_sequence(torch.ones_like(probabilities[:, :1]))
        if kind == "sequence":
            load = counts / (tokens * top_k)
            layer = (load * sums / tokens).sum(dim=-1).mean()
        else:
            load = counts.sum(dim=0) / tokens.sum()
            layer = (load * sums.sum(dim=0) / tokens.sum()).sum()
        total = total + experts * layer
    return total
