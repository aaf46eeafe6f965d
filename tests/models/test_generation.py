"""Tokens one by one: transformers' own, for every kind of model, and drawn ones."""

from __future__ import annotations

import pytest
import torch
from transformers import GenerationConfig, PreTrainedModel

from dpo_cli.compute.device import Device
from dpo_cli.models.generation import Decoding, generate
from dpo_cli.models.support import scorer_for
from tests.support import families

CPU = Device(torch.device("cpu"), torch.float32)
TOKENS = 24


def theirs(model: PreTrainedModel, prompt: torch.Tensor, end_id: int | None) -> list[int]:
    """What transformers has a model say, greedily."""
    model.generation_config.eos_token_id = None  # it would count where the settings name none
    config = GenerationConfig(
        do_sample=False, max_new_tokens=TOKENS, eos_token_id=end_id, pad_token_id=0, use_cache=True
    )
    ids = prompt.unsqueeze(0)
    said = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
    return said[0, len(prompt) :].tolist()


def ours(model: PreTrainedModel, prompt: torch.Tensor, end_id: int | None) -> list[int]:
    return list(generate(model, prompt, device=CPU, end_id=end_id, max_new_tokens=TOKENS))


@pytest.mark.parametrize("family", families.FAMILIES)
def test_every_family_says_what_transformers_has_it_say(family: str) -> None:
    model = scorer_for(families.build(family), 64).model.eval()
    generator = torch.Generator().manual_seed(3)
    prompt = torch.randint(families.VOCABULARY, (11,), generator=generator)
    whole = theirs(model, prompt, None)
    assert ours(model, prompt, None) == whole
    end = whole[9]
    until = whole[: whole.index(end) + 1]
    assert ours(model, prompt, end) == theirs(model, prompt, end) == until


LOGITS = torch.tensor([2.0, 1.0, 0.0, -9.0])


def drawn(question: int = 0, **settings: float) -> list[int]:
    choose = Decoding(max_new_tokens=1, **settings).token_sampler(question)  # type: ignore[arg-type]
    return [choose(LOGITS) for _ in range(2000)]


def test_tokens_are_drawn_as_often_as_they_are_likely() -> None:
    for temperature in (0.5, 1.0, 3.0):
        expected = (LOGITS / temperature).softmax(dim=-1)
        found = torch.bincount(torch.tensor(drawn(temperature=temperature)), minlength=4) / 2000
        assert (found - expected).abs().max() < 0.04
    # The first has 0.665 of the probability, both together 0.909.
    assert set(drawn(temperature=1.0, top_p=0.6)) == {0}
    assert set(drawn(temperature=1.0, top_p=0.8)) == {0, 1}


def test_what_is_drawn_follows_from_seed_and_question() -> None:
    assert drawn(temperature=1.0, seed=4) == drawn(temperature=1.0, seed=4)
    assert drawn(temperature=1.0, seed=4) != drawn(temperature=1.0, seed=9)
    assert drawn(0, temperature=1.0) != drawn(1, temperature=1.0)
    assert set(drawn()) == {0}
