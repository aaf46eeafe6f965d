from __future__ import annotations

import contextlib
import inspect
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dpo_cli.data.batching import PairSegments
from dpo_cli.models import attention, varlen
from dpo_cli.models.attention import segment_attention


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


@pytest.mark.parametrize(
    "segments",
    [
        [PairSegments(5, 3, 7)],
        [PairSegments(5, 7, 3), PairSegments(2, 1, 1), PairSegments(4, 0, 6)],
        [PairSegments(0, 3, 4), PairSegments(3, 4, 0)],
    ],
)
@pytest.mark.parametrize(("kept", "block"), [(1 << 23, 128), (1 << 23, 3), (0, 3)])
def test_packed_rows_match_dense_attention(
    segments: list[PairSegments], kept: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Output and gradients, for several block sizes, with saved or recomputed attention weights."""
    monkeypatch.setattr(attention, "_MAX_SAVED_WEIGHTS", kept)
    monkeypatch.setattr(attention, "_QUERY_BLOCK", block)
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
    # The path for dropout and for devices without the kernel; then the path with the kernel.
    check(attention._packed_flash_attention(*inputs, segments, 0.3, 0.0).transpose(1, 2))
    monkeypatch.setattr(varlen, "KERNEL", plain_kernel)
    sequences = varlen.locate_sequences(segments, torch.device("cpu"))
    check(varlen.varlen_attention(*inputs, sequences, 0.3))


def plain_kernel(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False,
) -> Tensor:
    """Compute the result of torch's variable-length kernel, which needs CUDA, by its definition."""
    assert window_size == (-1, 0)
    assert scale == 0.3
    assert enable_gqa == (query.shape[1] != key.shape[1])
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
    outputs = []
    for n in range(len(cu_seq_q) - 1):
        own_query = query[cu_seq_q[n] : cu_seq_q[n + 1]].transpose(0, 1).unsqueeze(0)
        span = slice(int(cu_seq_k[n]), int(cu_seq_k[n + 1]))
        keys, values = (state[span].transpose(0, 1).unsqueeze(0) for state in (key, value))
        queries = own_query.shape[2]
        assert 0 < queries <= max_q
        assert keys.shape[2] <= max_k
        causal = torch.ones(queries, keys.shape[2]).tril(keys.shape[2] - queries).bool()
        outputs.append(dense(own_query, keys, values, causal)[0])
    return torch.cat(outputs)


@pytest.mark.skipif(
    not torch.cuda.is_available() or varlen.KERNEL is None,
    reason="no CUDA, or a torch without variable-length attention",
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_kernel_on_cuda_matches_dense_attention_without_synchronizing(dtype: torch.dtype) -> None:
    segments = [PairSegments(70, 130, 90), PairSegments(4, 0, 6), PairSegments(0, 33, 1)]
    total = sum(pair.total for pair in segments)
    # Under autocast the norms of queries and keys return float32.
    inputs = [random(1, heads, total, 64).cuda() for heads in (8, 2, 2)]
    inputs = [tensor.to(dtype).requires_grad_() for tensor in inputs]
    upstream = random(1, total, 8, 64).to("cuda", dtype)
    device = torch.device("cuda")
    assert varlen.supports_kernel(inputs[1], inputs[2], dropout=0.0)
    assert not varlen.supports_kernel(inputs[1].float(), inputs[2].float(), dropout=0.0)
    sequences = varlen.locate_sequences(segments, device)
    torch.cuda.set_sync_debug_mode("error")
    try:
        query, key, value = inputs
        ours, _ = segment_attention(
            nn.Identity(),
            query.float(),
            key.float(),
            value,
            None,
            scaling=0.3,
            segments=segments,
            sequences=sequences,
        )
        gradients = torch.autograd.grad((ours * upstream).sum(), inputs)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
    expected = dense(*exact, visible_in(segments).cuda())
    right = torch.autograd.grad((expected * upstream).sum(), exact)
    for got, wanted in zip((ours, *gradients), (expected, *right), strict=True):
        assert (got - wanted).abs().max() <= 0.02 * wanted.abs().max()


@pytest.mark.skipif(varlen.KERNEL is None, reason="a torch without variable-length attention")
def test_plain_kernel_has_the_signature_of_the_kernel() -> None:
    assert varlen.KERNEL is not None
    theirs = inspect.signature(varlen.KERNEL).parameters
    for name, parameter in inspect.signature(plain_kernel).parameters.items():
        assert theirs[name].kind is parameter.kind
        assert theirs[name].default == parameter.default
    positional = [name for name, p in theirs.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert positional == list(inspect.signature(plain_kernel).parameters)[:7]


def test_kernel_supports_neither_cpu_nor_dropout() -> None:
    state = random(1, 2, 3, 64).bfloat16()
    assert not varlen.supports_kernel(state, state, dropout=0.0)


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
