"""Tests of activation checkpointing: the same bits, and fewer saved bytes."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dpo_cli.data.batching import Layout, make_batch
from dpo_cli.models.loading import build_model
from dpo_cli.models.options import checkpoint_activations, use_experts_for
from dpo_cli.models.scoring import ResponseScorer
from dpo_cli.training.checkpointing import load_weights
from tests.support.two_layouts import (
    ARCHITECTURES,
    MAX_SEQ_LEN,
    empty_state,
    family_scorer,
    odd_pairs,
    random_weights,
)
from tests.support.worker_runs import train


def make_scorer(name: str, layout: Layout, dropout: float) -> ResponseScorer:
    if name not in ARCHITECTURES:
        return family_scorer(name, layout)
    architecture = ARCHITECTURES[name]
    model = build_model(architecture, empty_state(architecture), dropout=dropout)
    random_weights(model)
    if architecture.use_moe:
        use_experts_for(model, float32=True)
    return ResponseScorer(model, architecture.aux_loss_kind if architecture.use_moe else None)


def gradients(
    name: str, layout: Layout, *, is_checkpointed: bool, dropout: float = 0.0
) -> tuple[list[Tensor], int]:
    """Return gradients of two batches with an aux_loss, and the bytes of saved activations."""
    scorer = make_scorer(name, layout, dropout).float().train()
    if is_checkpointed:
        checkpoint_activations(scorer.model)
    torch.manual_seed(7)
    kept = 0

    def count(tensor: Tensor) -> Tensor:
        nonlocal kept
        kept += tensor.nbytes
        return tensor

    pairs = odd_pairs()
    for some in (pairs[:3], pairs[3:8]):
        batch = make_batch(some, layout, max_seq_len=MAX_SEQ_LEN, share_prompts=not dropout)
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            scores = scorer(batch)
        loss = scores.token_logps[scores.mask].mean()
        if scores.aux_loss is not None:
            loss = loss + 0.1 * scores.aux_loss
        loss.backward()
    return [p.grad for p in scorer.parameters() if p.grad is not None], kept


@pytest.mark.parametrize("layout", ["packed", "padded"])
@pytest.mark.parametrize("name", [*ARCHITECTURES, "gpt2", "gemma2"])
def test_activation_checkpointing_keeps_the_bits(name: str, layout: Layout) -> None:
    plain, much = gradients(name, layout, is_checkpointed=False)
    again, little = gradients(name, layout, is_checkpointed=True)
    assert len(plain) == len(again) > 10
    assert all(torch.equal(*both) for both in zip(plain, again, strict=True))
    assert little < much / 3


@pytest.mark.parametrize("name", ["minimind2-moe", "minimind3"])
def test_recomputed_blocks_use_the_same_dropout(name: str) -> None:
    plain, _ = gradients(name, "packed", is_checkpointed=False, dropout=0.3)
    again, _ = gradients(name, "packed", is_checkpointed=True, dropout=0.3)
    whole, _ = gradients(name, "packed", is_checkpointed=False)
    assert all(torch.equal(*both) for both in zip(plain, again, strict=True))
    assert not all(torch.equal(*both) for both in zip(plain, whole, strict=True))


@pytest.mark.parametrize("profile", ["dense", "minimind3-moe"])
def test_run_ends_in_the_same_bits(shared: Path, tmp_path: Path, profile: str) -> None:
    runs = [
        train(shared, tmp_path, profile, "float32", **{"train.activation_checkpointing": choice})
        for choice in ("false", "true")
    ]
    plain, again = ([step.losses for step in run.steps] for run in runs)
    assert plain == again
    assert all(math.isfinite(loss) for losses in plain for loss in losses)
    weights = []
    for run in runs:
        checkpoint, _ = run.directory.newest_verified()
        assert checkpoint is not None
        weights.append(load_weights(checkpoint.path))
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
