"""Attention computed by its definition, for comparisons."""

from __future__ import annotations

import torch
from torch import Tensor

from dpo_cli.data.sequences import PairSegments


def random(*shape: int) -> Tensor:
    return torch.randn(
        shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.double
    )


def dense(query: Tensor, key: Tensor, value: Tensor, visible: Tensor) -> Tensor:
    """Compute attention by its definition, with a dense mask over the whole row."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = (query @ key.transpose(-1, -2) * 0.3).masked_fill(~visible, -torch.inf)
    return (scores.softmax(-1) @ value).transpose(1, 2)


def visible_in(segments: list[PairSegments]) -> Tensor:
    total = sum(pair.total for pair in segments)
    visible = torch.zeros(total, total, dtype=torch.bool)
    start = 0
    for pair in segments:
        prompt = range(start, start + pair.prompt)
        chosen = range(prompt.stop, prompt.stop + pair.chosen)
        rejected = range(chosen.stop, chosen.stop + pair.rejected)
        for sees, own in ((prompt, prompt), (chosen, chosen), (rejected, rejected)):
            for query in sees:
                for key in (*prompt, *own):
                    visible[query, key] = key <= query
        start += pair.total
    return visible
