"""Tests of torch.compile: equal numbers except for rounding, one compilation for all lengths."""

from __future__ import annotations

import shutil

import pytest
import torch
from torch import Tensor

from dpo_cli.data.batching import make_batch
from dpo_cli.models.options import compile_blocks
from dpo_cli.training.failures import explain
from tests.support.two_layouts import minimind_scorer, odd_pairs

needs_compiler = pytest.mark.skipif(
    shutil.which("g++") is None and shutil.which("c++") is None, reason="needs a C++ compiler"
)


def gradients(name: str, *, is_compiled: bool) -> list[Tensor]:
    """Return the gradients of three batches of different lengths."""
    scorer = minimind_scorer(name, "packed").float().train()
    if is_compiled:
        compile_blocks(scorer.model)
    pairs = odd_pairs()
    for some in (pairs[:2], pairs[2:7], pairs[7:]):
        scores = scorer(make_batch(some, "packed", max_seq_len=0))
        scores.token_logps[scores.mask].mean().backward()
    return [parameter.grad for parameter in scorer.parameters() if parameter.grad is not None]


@needs_compiler
@pytest.mark.parametrize("name", ["minimind2", "minimind3-moe"])
def test_compiled_blocks_give_the_same_gradients(name: str) -> None:
    torch._dynamo.reset()
    plain = gradients(name, is_compiled=False)
    compiled = gradients(name, is_compiled=True)
    for ours, expected in zip(compiled, plain, strict=True):
        # A router with one expert of weight 1 has a gradient of rounding errors only.
        assert (ours - expected).norm() <= 1e-5 * expected.norm() + 1e-7
    # A graph for each kind of module and shape, none for each length.
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert 2 <= graphs <= 6


def test_a_compiler_that_fails_is_explained() -> None:
    explained = explain(torch._dynamo.exc.TorchDynamoException("no C++ compiler"))
    assert explained is not None
    assert "train.compile = false" in explained.remedy
    assert explain(RuntimeError("another")) is None
