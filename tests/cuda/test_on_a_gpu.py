"""Tests that need a real GPU; skipped without one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dpo_cli.compute.device import Device
from dpo_cli.data.sequences import PairSegments, Sequences, locate_sequences
from dpo_cli.data.staging import stage
from dpo_cli.models.attention import segment_attention
from dpo_cli.models.varlen import kernel_for
from dpo_cli.training import step_metrics
from tests.support.attention import dense, random, visible_in
from tests.support.fake_runs import architecture, fake_trainer

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
GPU = torch.device("cuda", 0)


@pytest.fixture
def no_waiting() -> Any:
    """Make torch raise an error where the CPU waits for the GPU."""
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")


def on_gpu(segments: list[PairSegments]) -> Sequences:
    found = locate_sequences(segments)
    index, queries, keys = stage([found.key_index, found.cu_seqlens_q, found.cu_seqlens_k]).to(GPU)
    return Sequences(index, queries, keys, found.max_seqlen_q, found.max_seqlen_k)


@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.bfloat16, 0.02), (torch.float16, 0.004), (torch.float32, 1e-5)]
)
def test_kernels_match_dense_attention_without_waiting(
    dtype: torch.dtype, bound: float, no_waiting: None
) -> None:
    segments = [PairSegments(70, 130, 90), PairSegments(4, 0, 6), PairSegments(0, 33, 1)]
    total = sum(pair.total for pair in segments)
    inputs = [random(1, heads, total, 64).to(GPU, dtype, non_blocking=True) for heads in (8, 2, 2)]
    inputs = [tensor.requires_grad_() for tensor in inputs]
    upstream = random(1, total, 8, 64).to(GPU, dtype, non_blocking=True)
    assert kernel_for(*inputs, dropout=0.0) is not None
    query, key, value = inputs
    # Under autocast the norms of queries and keys return float32.
    ours, _ = segment_attention(
        nn.Identity(),
        *(query.float(), key.float(), value, None),
        scaling=0.3,
        segments=segments,
        sequences=on_gpu(segments),
    )
    gradients = torch.autograd.grad((ours * upstream).sum(), inputs)
    torch.cuda.set_sync_debug_mode("default")
    exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
    expected = dense(*exact, visible_in(segments).to(GPU))
    right = torch.autograd.grad((expected * upstream).sum(), exact)
    for got, wanted in zip((ours, *gradients), (expected, *right), strict=True):
        assert (got - wanted).abs().max() <= bound * wanted.abs().max()


@pytest.mark.parametrize("model", ["minimind2", "minimind3", "llama", "gemma3"])
def test_a_step_waits_only_to_read_its_figures(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_waiting: None
) -> None:
    reduce = step_metrics.StepMetrics.reduce

    def reading(self: step_metrics.StepMetrics, *arguments: Any) -> Any:
        torch.cuda.set_sync_debug_mode("default")
        try:
            return reduce(self, *arguments)
        finally:
            torch.cuda.set_sync_debug_mode("error")

    monkeypatch.setattr(step_metrics.StepMetrics, "reduce", reading)
    monkeypatch.setenv("DPO_CACHE_DIR", str(tmp_path))
    torch.cuda.set_sync_debug_mode("default")
    trainer = fake_trainer(
        architecture(model),
        tmp_path,
        device=Device(GPU, torch.bfloat16),
        pairs=8,
        batch_size=4,
        lengths=(13, (9, 14)),
    )
    monkeypatch.setattr(type(trainer), "is_logged", lambda *_: False)
    for global_batch in trainer.inputs.order.global_batches():
        torch.cuda.set_sync_debug_mode("error")
        assert not trainer.take_step(global_batch).is_skipped
