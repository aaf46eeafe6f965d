"""The load-balancing loss of mixture-of-experts layers, as both MiniMind versions define it.

Computed from the router's logits: transformers has one of its own, and it is another function.

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
    """Which tokens count for which sequence, where sequences may share tokens (a common prompt).

    Attributes:
        segment_ids: (N,), the segment of each token.
        members: (S, G), 1.0 where a sequence is made of a segment. A segment in no sequence
            (padding) counts nowhere; one in two sequences counts once in each.
    """

    segment_ids: Tensor
    members: Tensor

    def sum_by_sequence(self, values: Tensor) -> Tensor:
        """(N, E) -> (S, E): the sum over the tokens of each sequence."""
        segments = values.new_zeros(self.members.shape[1], values.shape[1])
        segments = segments.index_add(0, self.segment_ids, values)
        return self.members.to(values.dtype) @ segments


def aux_loss(
    router_logits: Sequence[Tensor], groups: TokenGroups, top_k: int, kind: AuxLossKind
) -> Tensor:
    """How unevenly the experts are used, summed over layers; 1 a layer when used evenly.

    "sequence" (MiniMind version 2, `seq_aux`; DeepSeek-MoE, arXiv:2401.06066, eq. 12 to 14): per
    sequence, E / (k * tokens) * sum over experts of (times chosen * mean router probability), then
    the mean over sequences. "batch" (MiniMind version 3; Switch Transformer, arXiv:2101.03961, eq.
    4-6): the same product over all tokens at once, without the division by k.

    Args:
        router_logits: one (N, E) tensor a layer, before the softmax.
        groups: which tokens count, and for which sequence.
        top_k: experts chosen for each token.
        kind: which of the two definitions.

    Returns:
        A scalar without its coefficient.
    """
    total = router_logits[0].new_zeros((), dtype=torch.float32)
    for logits in router_logits:
        wide = logits if logits.dtype == torch.float64 else logits.float()
        experts = logits.shape[-1]
        scores = wide.softmax(dim=-1)
        chosen = torch.zeros_like(scores).scatter(-1, scores.topk(top_k, dim=-1).indices, 1.0)
        counts = groups.sum_by_sequence(chosen)
        probabilities = groups.sum_by_sequence(scores)
        tokens = groups.sum_by_sequence(torch.ones_like(scores[:, :1]))
        if kind == "sequence":
            load = counts / (tokens * top_k)
            layer = (load * probabilities / tokens).sum(dim=-1).mean()
        else:
            load = counts.sum(dim=0) / tokens.sum()
            layer = (load * probabilities.sum(dim=0) / tokens.sum()).sum()
        total = total + experts * layer
    return total
