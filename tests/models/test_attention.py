from __future__ import annotations

import contextlib
import inspect
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dpo_cli.data.sequences import PairSegments, locate_sequences
from dpo_cli.models import varlen
from dpo_cli.models.attention import segment_attention
from tests.support.attention import dense, random, visible_in


@pytest.mark.parametrize(
    "segments",
    [
        [PairSegments(5, 3, 7)],
        [PairSegments(5, 7, 3), PairSegments(2, 1, 1), PairSegments(4, 0, 6)],
        [PairSegments(0, 3, 4), PairSegments(3, 4, 0)],
    ],
)
def test_packed_rows_match_dense_attention(
    segments: list[PairSegments], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compares output and gradients of torch's attention per sequence and of both GPU kernels."""
    total = sum(pair.total for pair in segments)
    inputs = random(1, 4, total, 8), random(1, 2, total, 8), random(1, 2, total, 9)[..., :6]
    inputs = tuple(tensor.requires_grad_() for tensor in inputs)
    upstream = random(1, total, 4, 6)
    expected = dense(*inputs, visible_in(segments))
    gradients = torch.autograd.grad((expected * upstream).sum(), inputs)

    def check(output: Tensor) -> None:
        assert torch.allclose(output, expected, rtol=0, atol=1e-13)
        for ours, right in zip(
            torch.autograd.grad((output * upstream).sum(), inputs), gradients, strict=True
        ):
            assert torch.allclose(ours, right, rtol=0, atol=1e-13)

    output, weights = segment_attention(
        nn.Identity(), *inputs, None, scaling=0.3, segments=segments
    )
    assert weights is None
    check(output)
    monkeypatch.setattr(torch.ops, "aten", SimpleNamespace(**PLAIN_KERNELS))
    sequences = locate_sequences(segments)
    for kernel in ("flash", "efficient"):
        check(varlen.varlen_attention(*inputs, sequences, 0.3, kernel))


def plain_flash(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cum_seq_q: Tensor,
    cum_seq_k: Tensor,
    max_q: int,
    max_k: int,
    dropout_p: float,
    is_causal: bool,
    return_debug_mask: bool,
    *,
    scale: float,
) -> tuple[Tensor]:
    """Compute the result of the flash attention operator, which needs CUDA, by its definition."""
    assert (dropout_p, is_causal, return_debug_mask, scale) == (0.0, True, False, 0.3)
    assert cum_seq_q.dtype == cum_seq_k.dtype == torch.int32
    outputs = []
    for n in range(len(cum_seq_q) - 1):
        own_query = query[cum_seq_q[n] : cum_seq_q[n + 1]].transpose(0, 1).unsqueeze(0)
        span = slice(int(cum_seq_k[n]), int(cum_seq_k[n + 1]))
        keys, values = (state[span].transpose(0, 1).unsqueeze(0) for state in (key, value))
        queries = own_query.shape[2]
        assert 0 < queries <= max_q
        assert keys.shape[2] <= max_k
        causal = torch.ones(queries, keys.shape[2]).tril(keys.shape[2] - queries).bool()
        outputs.append(dense(own_query, keys, values, causal)[0])
    return (torch.cat(outputs),)


def plain_efficient(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float,
    custom_mask_type: int,
    compute_log_sumexp: bool,
    *,
    scale: float,
) -> tuple[Tensor]:
    """Compute the result of the memory-efficient operator, which has no grouped queries."""
    assert bias is None
    assert (custom_mask_type, compute_log_sumexp) == (2, torch.is_grad_enabled())
    assert query.shape[2] == key.shape[2] == value.shape[2]
    rows = (state.squeeze(0) for state in (query, key, value))
    lengths = cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k
    output = plain_flash(*rows, *lengths, dropout_p, True, False, scale=scale)[0]
    return (output.unsqueeze(0),)


PLAIN_KERNELS = {
    "_flash_attention_forward": plain_flash,
    "_efficient_attention_forward": plain_efficient,
}


@pytest.mark.parametrize("kernel", ["flash", "efficient"])
def test_plain_kernels_have_the_arguments_of_the_operators(kernel: varlen.Kernel) -> None:
    """The arguments are compared by name and order, so that a changed operator is not called."""
    name = f"_{kernel}_attention_forward"
    own = inspect.signature(PLAIN_KERNELS[name]).parameters
    assert list(own) == varlen._ARGUMENTS[kernel].split()
    assert varlen._is_known(kernel)


def test_an_operator_with_other_arguments_is_not_called(monkeypatch: pytest.MonkeyPatch) -> None:
    varlen._is_known.cache_clear()
    monkeypatch.setitem(varlen._ARGUMENTS, "flash", "query key value lengths scale")
    try:
        assert not varlen._is_known("flash")
    finally:
        varlen._is_known.cache_clear()


@pytest.mark.parametrize(
    ("capability", "dtype", "head_dim", "dropout", "kernel"),
    [
        ((9, 0), torch.bfloat16, 64, 0.0, "flash"),
        ((8, 0), torch.float16, 256, 0.0, "flash"),
        ((8, 6), torch.bfloat16, 192, 0.0, "flash"),
        ((8, 6), torch.bfloat16, 200, 0.0, "efficient"),
        ((9, 0), torch.bfloat16, 264, 0.0, "efficient"),
        ((9, 0), torch.float32, 64, 0.0, "efficient"),
        ((7, 5), torch.float16, 64, 0.0, "efficient"),
        ((7, 5), torch.float32, 64, 0.0, "efficient"),
        ((7, 5), torch.bfloat16, 64, 0.0, None),
        ((9, 0), torch.float64, 64, 0.0, None),
        ((9, 0), torch.bfloat16, 60, 0.0, None),
        ((9, 0), torch.bfloat16, 64, 0.1, None),
        (None, torch.bfloat16, 64, 0.0, None),
    ],
)
def test_choice_of_the_kernel(
    capability: tuple[int, int] | None,
    dtype: torch.dtype,
    head_dim: int,
    dropout: float,
    kernel: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(varlen, "capability", lambda device: capability)
    state = torch.empty(1, 2, 3, head_dim, dtype=dtype, device="meta")
    # Under autocast the norms of queries and keys return float32.
    assert varlen.kernel_for(state.float(), state.float(), state, dropout) == kernel


def test_a_cpu_has_no_kernel() -> None:
    state = random(1, 2, 3, 64).bfloat16()
    assert varlen.kernel_for(state, state, state, dropout=0.0) is None


def test_padded_rows_are_causal() -> None:
    query, key, value = random(2, 4, 6, 8), random(2, 2, 6, 8), random(2, 2, 6, 8)
    output, _ = segment_attention(nn.Identity(), query, key, value, None, scaling=0.3)
    causal = torch.ones(6, 6).tril().bool()
    assert torch.allclose(output, dense(query, key, value, causal), atol=1e-12)


@pytest.mark.parametrize("argument", ["softcap", "s_aux", "position_bias", "something_new"])
def test_unsupported_arguments_are_errors(argument: str) -> None:
    arguments: Any = {argument: SimpleNamespace()}
    state = random(1, 2, 3, 4)
    with pytest.raises(NotImplementedError, match=f"Identity needs {argument}"):
        segment_attention(nn.Identity(), state, state, state, None, scaling=1.0, **arguments)


def test_sliding_window_shorter_than_a_sequence_is_an_error() -> None:
    row = random(1, 2, 12, 4)
    segments = [PairSegments(3, 2, 4), PairSegments(0, 1, 2)]
    for window, is_error in ((7, False), (6, True)):
        with pytest.raises(NotImplementedError) if is_error else contextlib.nullcontext():
            segment_attention(
                nn.Identity(),
                *(row, row, row),
                None,
                scaling=1.0,
                segments=segments,
                sliding_window=window,
            )
    with pytest.raises(NotImplementedError, match="a sliding window of 11 tokens"):
        segment_attention(nn.Identity(), row, row, row, None, scaling=1.0, sliding_window=11)


def test_non_causal_attention_is_an_error() -> None:
    state, module = random(1, 2, 3, 4), nn.Identity()
    with pytest.raises(NotImplementedError, match="attention to later tokens"):
        segment_attention(module, state, state, state, None, scaling=1.0, is_causal=False)
    module.is_causal = False  # type: ignore[assignment]
    with pytest.raises(NotImplementedError, match="attention to later tokens"):
        segment_attention(module, state, state, state, None, scaling=1.0)


def test_attention_mask_is_an_error() -> None:
    state = random(1, 2, 3, 4)
    with pytest.raises(NotImplementedError, match="an attention mask"):
        segment_attention(nn.Identity(), state, state, state, torch.ones(3, 3), scaling=1.0)
