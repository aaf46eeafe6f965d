from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dpo_cli.data.batching import PairSegments
from dpo_cli.models import attention
from dpo_cli.models.attention import segment_attention


def draw(*shape: int) -> Tensor:
    return torch.randn(
        shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.double
    )


def dense(query: Tensor, key: Tensor, value: Tensor, visible: Tensor) -> Tensor:
    """Attention by its definition, with a mask over the whole row."""
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
def test_packed_rows_see_what_they_may(
    segments: list[PairSegments], kept: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Output and gradients, in blocks of any size, with weights that are kept or computed again."""
    monkeypatch.setattr(attention, "_KEPT", kept)
    monkeypatch.setattr(attention, "_BLOCK", block)
    total = sum(pair.total for pair in segments)
    inputs = draw(1, 4, total, 8), draw(1, 2, total, 8), draw(1, 2, total, 9)[..., :8]
    inputs = tuple(tensor.requires_grad_() for tensor in inputs)
    upstream = draw(1, total, 4, 8)
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
    # The way of other devices, and of dropout.
    check(attention._packed_flash_attention(*inputs, segments, 0.3, 0.0).transpose(1, 2))


def test_padded_rows_are_causal() -> None:
    query, key, value = draw(2, 4, 6, 8), draw(2, 2, 6, 8), draw(2, 2, 6, 8)
    output, _ = segment_attention(nn.Identity(), query, key, value, None, scaling=0.3)
    causal = torch.ones(6, 6).tril().bool()
    assert torch.allclose(output, dense(query, key, value, causal), atol=1e-12)


@pytest.mark.parametrize("asked", ["sliding_window", "softcap", "s_aux"])
def test_what_is_not_computed_is_refused(asked: str) -> None:
    some: Any = {asked: SimpleNamespace()}
    state = draw(1, 2, 3, 4)
    with pytest.raises(NotImplementedError, match=f"Identity needs {asked}"):
        segment_attention(nn.Identity(), state, state, state, None, scaling=1.0, **some)


def test_a_mask_is_refused() -> None:
    state = draw(1, 2, 3, 4)
    with pytest.raises(NotImplementedError, match="an attention mask"):
        segment_attention(nn.Identity(), state, state, state, torch.ones(3, 3), scaling=1.0)
