"""Tests of the aux_loss against plain formulas of both MiniMind versions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dpo_cli.objective.aux_loss import TokenGroups, aux_loss


def one_group(tokens: int) -> TokenGroups:
    return TokenGroups(torch.zeros(tokens, dtype=torch.int64), torch.ones(1, 1))


def even_logits(tokens: int, experts: int) -> Tensor:
    """Return logits that choose each expert equally often."""
    return torch.eye(experts).repeat(tokens // experts, 1) * 9


@pytest.mark.parametrize("kind", ["sequence", "batch"])
def test_even_use_gives_one_per_layer_and_uneven_use_more(kind: str) -> None:
    even = aux_loss([even_logits(16, 4)] * 3, one_group(16), 1, kind)  # type: ignore[arg-type]
    assert even.item() == pytest.approx(3.0, abs=1e-5)
    uneven = torch.tensor([[9.0, 0.0, 0.0, 0.0]]).repeat(16, 1)
    one = aux_loss([uneven], one_group(16), 1, kind)  # type: ignore[arg-type]
    assert 3.9 < one.item() < 4.0


def plain_sequence_loss(logits: Tensor, top_k: int) -> Tensor:
    """Compute MiniMind version 2's formula for one sequence of logits, (tokens, experts)."""
    tokens, experts = logits.shape
    scores = logits.softmax(-1)
    counts = torch.zeros(experts)
    for row in scores.topk(top_k, dim=-1).indices:
        counts[row] += 1
    return (counts / (tokens * top_k / experts) * scores.mean(0)).sum()


def plain_batch_loss(logits: Tensor, top_k: int) -> Tensor:
    """Compute MiniMind version 3's formula: E * sum_e (share of tokens * mean probability)."""
    scores = logits.softmax(-1)
    load = torch.nn.functional.one_hot(scores.topk(top_k, -1).indices, logits.shape[1]).float()
    return (load.mean(0) * scores.mean(0)).sum() * logits.shape[1]


def test_shared_prompt_counts_once_in_each_sequence() -> None:
    generator = torch.Generator().manual_seed(3)
    prompt, chosen, rejected, padding = (
        torch.randn(n, 4, generator=generator) for n in (6, 3, 5, 7)
    )
    logits = torch.cat([prompt, chosen, rejected, padding])
    groups = TokenGroups(
        torch.repeat_interleave(torch.tensor([6, 3, 5, 7])),
        torch.tensor([[1.0, 1.0, 0.0, 0.0], [1.0, 0.0, 1.0, 0.0]]),
    )
    sides = [torch.cat([prompt, chosen]), torch.cat([prompt, rejected])]
    by_sequence = aux_loss([logits], groups, 2, "sequence")
    expected = sum(plain_sequence_loss(side, 2) for side in sides) / 2
    assert by_sequence.item() == pytest.approx(float(expected), rel=1e-5)
    by_batch = aux_loss([logits], groups, 2, "batch")
    assert by_batch.item() == pytest.approx(plain_batch_loss(torch.cat(sides), 2).item(), rel=1e-5)


def test_gradients_reach_the_router() -> None:
    logits = torch.randn(12, 4, generator=torch.Generator().manual_seed(4)).requires_grad_()
    aux_loss([logits], one_group(12), 2, "sequence").backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert logits.grad.abs().max() > 1e-4
