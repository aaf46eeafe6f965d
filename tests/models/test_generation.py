"""Tests that greedy generation equals transformers, and that sampling follows its settings."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel

from dpo_cli.compute.device import Device
from dpo_cli.models.generation import Decoding, generate
from dpo_cli.models.support import scorer_for
from tests.support import families
from tests.support.families import CPU, TOKENS, transformers_tokens


def generated_tokens(model: PreTrainedModel, prompt: torch.Tensor, end_id: int | None) -> list[int]:
    stop_ids = set() if end_id is None else {end_id}
    return list(generate(model, prompt, device=CPU, stop_ids=stop_ids, max_new_tokens=TOKENS))


@pytest.mark.parametrize("family", families.FAMILIES)
def test_greedy_generation_matches_transformers(family: str) -> None:
    model = scorer_for(families.build(family), 64).model.eval()
    generator = torch.Generator().manual_seed(3)
    prompt = torch.randint(families.VOCABULARY, (11,), generator=generator)
    whole = transformers_tokens(model, prompt, None)
    assert generated_tokens(model, prompt, None) == whole
    end = whole[9]
    until = whole[: whole.index(end) + 1]
    assert generated_tokens(model, prompt, end) == until
    assert transformers_tokens(model, prompt, end) == until


class Casts(TorchDispatchMode):
    """Counts the casts of matrices to bfloat16."""

    count = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        if function is torch.ops.aten._to_copy.default and args[0].shape in SHAPES:
            self.count += result.dtype == torch.bfloat16
        return result


SHAPES = [(32, 32), (16, 32), (48, 32), (32, 48), (families.VOCABULARY, 32)]
"""Shapes of the weights of the small Llama, of 7 matrices per layer and the head."""


def test_weights_are_cast_once_per_answer() -> None:
    model = families.build("llama").eval()
    device = Device(torch.device("cpu"), torch.bfloat16)
    casts = Casts()
    with casts:
        tokens = generate(model, torch.arange(1, 4), device=device, stop_ids=(), max_new_tokens=5)
        assert len(list(tokens)) == 5
        assert casts.count == 2 * 7 + 1
        # An answer that is not read to its end leaves no cast weights in the model.
        tokens = generate(model, torch.arange(1, 4), device=device, stop_ids=(), max_new_tokens=5)
        next(tokens)
        tokens.close()  # type: ignore[attr-defined]
        with torch.no_grad(), device.autocast():
            model(input_ids=torch.ones(1, 2, dtype=torch.int64))
    assert casts.count == 3 * (2 * 7 + 1)


LOGITS = torch.tensor([2.0, 1.0, 0.0, -9.0])


def sampled(question: int = 0, **settings: float) -> list[int]:
    sample = Decoding(max_new_tokens=1, **settings).token_sampler(question)  # type: ignore[arg-type]
    return [sample(LOGITS) for _ in range(2000)]


def test_sample_frequencies_match_probabilities() -> None:
    for temperature in (0.5, 1.0, 3.0):
        expected = (LOGITS / temperature).softmax(dim=-1)
        frequencies = (
            torch.bincount(torch.tensor(sampled(temperature=temperature)), minlength=4) / 2000
        )
        assert (frequencies - expected).abs().max() < 0.04
    # The first has 0.665 of the probability, both together 0.909.
    assert set(sampled(temperature=1.0, top_p=0.6)) == {0}
    assert set(sampled(temperature=1.0, top_p=0.8)) == {0, 1}


def test_samples_depend_on_seed_and_question_only() -> None:
    assert sampled(temperature=1.0, seed=4) == sampled(temperature=1.0, seed=4)
    assert sampled(temperature=1.0, seed=4) != sampled(temperature=1.0, seed=9)
    assert sampled(0, temperature=1.0) != sampled(1, temperature=1.0)
    assert set(sampled()) == {0}
