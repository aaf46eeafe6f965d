"""Tests of fused head log-probs against log-softmax and gather: values and gradients."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from dpo_cli.objective import logps
from dpo_cli.objective.logps import (
    entropies,
    gather_logps,
    head_logps,
    head_logps_and_entropies,
)


def fused_and_plain(
    dtype: torch.dtype, scaling: float
) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]:
    """Return log-probs and both gradients, from `head_logps` and from autograd over all logits."""
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(23, 12, generator=generator, dtype=torch.float64).to(dtype)
    weight = torch.randn(41, 12, generator=generator, dtype=torch.float64).to(dtype)
    labels = torch.randint(41, (23,), generator=generator)
    upstream = torch.randn(23, generator=generator, dtype=torch.float64)
    results = []
    for fused in (True, False):
        inputs = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        if fused:
            output = head_logps(*inputs, labels, logits_scaling=scaling)
        else:
            output = gather_logps(inputs[0] @ inputs[1].T / scaling, labels)
        gradients = torch.autograd.grad((output * upstream).sum(), inputs)
        results.append((output.detach(), *gradients))
    return results[0], results[1]


@pytest.mark.parametrize("scaling", [1.0, 3.0])
@pytest.mark.parametrize("chunk_elements", [1, 200, 1 << 24])
def test_fused_equals_plain_in_float64(
    scaling: float, chunk_elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logps, "_CHUNK_ELEMENTS", chunk_elements)
    for most in (1 << 27, 0):  # probabilities saved for the backward pass, or computed again
        monkeypatch.setattr(logps, "_MAX_SAVED_PROBABILITIES", most)
        for fused, plain in zip(*fused_and_plain(torch.float64, scaling), strict=True):
            assert torch.allclose(fused, plain, rtol=0, atol=1e-13)


def test_fused_equals_plain_in_float32_and_bfloat16() -> None:
    for fused, plain in zip(*fused_and_plain(torch.float32, 1.0), strict=True):
        assert torch.allclose(fused, plain, rtol=0, atol=1e-5)
    fused, plain = fused_and_plain(torch.bfloat16, 1.0)
    assert fused[0].dtype == torch.float32
    for actual, expected in zip(fused, plain, strict=True):
        assert (actual - expected).abs().max() <= 0.02 * expected.abs().max()


@pytest.mark.parametrize("chunk_elements", [1 << 24, 400])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_only_the_factors_are_rounded(
    dtype: torch.dtype, chunk_elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Log-probs of rounded factors are exact to float32, and so is the sum over the chunks.

    Logits rounded to bfloat16 change a log-prob by up to 0.04, and a gradient that is summed in
    bfloat16 over 50 chunks by 7e-3 of its size.
    """
    monkeypatch.setattr(logps, "_CHUNK_ELEMENTS", chunk_elements)
    generator = torch.Generator().manual_seed(2)
    hidden = torch.randn(50, 64, generator=generator).requires_grad_()
    weight = (torch.randn(400, 64, generator=generator) * 0.4).requires_grad_()
    labels = torch.randint(400, (50,), generator=generator)
    output = head_logps(hidden, weight, labels, dtype=dtype)
    gradients = torch.autograd.grad(output.sum(), (hidden, weight))
    rounded = [each.detach().to(dtype).double().requires_grad_() for each in (hidden, weight)]
    exact = gather_logps(rounded[0] @ rounded[1].T, labels)
    expected = torch.autograd.grad(exact.sum(), rounded)
    assert (output - exact).abs().max() < 1e-5
    for gradient, right in zip(gradients, expected, strict=True):
        assert gradient.dtype == torch.float32
        # The gradient of the logits is a rounded factor, too.
        assert (gradient - right).norm() < 3e-3 * right.norm()


def test_the_sum_over_chunks_does_not_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """A large gradient of the first chunk and small ones of 200 more."""
    monkeypatch.setattr(logps, "_CHUNK_ELEMENTS", 2)
    hidden = torch.ones(201, 1)
    weight = torch.zeros(2, 1, requires_grad=True)
    upstream = torch.cat([torch.tensor([512.0]), torch.ones(200)])
    output = head_logps(hidden, weight, torch.zeros(201, dtype=torch.int64), dtype=torch.bfloat16)
    (gradient,) = torch.autograd.grad((output * upstream).sum(), weight)
    assert gradient.squeeze().tolist() == [356.0, -356.0]


def test_small_gradients_of_confident_tokens_survive_bfloat16() -> None:
    """At p = 0.9995 the gradient is 1 - p, which is 0 if p is rounded to bfloat16."""
    hidden = torch.eye(2, dtype=torch.bfloat16)[:1].requires_grad_()
    weight = torch.tensor([[7.5, 0.0], [0.0, 0.0]], dtype=torch.bfloat16)
    logp = head_logps(hidden, weight, torch.tensor([0]))
    (gradient,) = torch.autograd.grad(logp.sum(), hidden)
    expected = 7.5 * (1 - logp.exp().item())
    assert expected > 0.003
    assert gradient[0, 0].item() == pytest.approx(expected, rel=0.01)


def test_forward_is_bitwise_equal_with_and_without_gradients() -> None:
    """The policy runs with gradients, the reference without; at the start they must be equal."""
    hidden, weight, labels = torch.randn(30, 8), torch.randn(50, 8), torch.randint(50, (30,))
    with_gradients = head_logps(hidden.clone().requires_grad_(), weight, labels)
    assert torch.equal(with_gradients.detach(), head_logps(hidden, weight, labels))


@pytest.mark.parametrize("chunk_elements", [1, 200, 1 << 24])
def test_entropies_match_the_softmax(chunk_elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logps, "_CHUNK_ELEMENTS", chunk_elements)
    generator = torch.Generator().manual_seed(3)
    hidden, weight = (
        torch.randn(size, 8, generator=generator, dtype=torch.float64) for size in (30, 50)
    )
    labels = torch.randint(50, (30,), generator=generator)
    logits = hidden @ weight.T / 2
    logits_before = logits.clone()
    p = logits.softmax(dim=-1)
    expected = -(p * p.log()).sum(dim=-1)
    fused, entropy = head_logps_and_entropies(hidden, weight, labels, logits_scaling=2.0)
    assert torch.equal(fused, head_logps(hidden, weight, labels, logits_scaling=2.0))
    assert torch.allclose(entropy, expected, rtol=0, atol=1e-12)
    mask = (torch.arange(30) % 3 > 0).view(5, 6)
    plain = entropies(logits.view(5, 6, 50), mask)
    assert torch.allclose(plain, torch.where(mask, expected.view(5, 6), 0.0), rtol=0, atol=1e-12)
    assert torch.equal(logits, logits_before)


def test_entropies_with_certain_and_impossible_tokens() -> None:
    logits = torch.tensor([[0.0, -torch.inf, -1e4], [3.0, 3.0, -torch.inf]], dtype=torch.bfloat16)
    entropy = entropies(logits, torch.ones(2, dtype=torch.bool))
    assert entropy.dtype == torch.float32
    assert entropy.tolist() == pytest.approx([0.0, math.log(2)], abs=1e-6)
