"""Tests that every model is scored as by its own forward, in packed rows if it supports them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from dpo_cli.data.batching import make_batch
from dpo_cli.data.chat import Tokenized, TokenizedPair
from dpo_cli.errors import DpoError
from dpo_cli.models import attention
from dpo_cli.models.scoring import ResponseScorer
from dpo_cli.models.support import scorer_for, why_not_packed
from tests.support.families import FAMILIES, UNSUPPORTED, VOCABULARY, build

LONGEST = 40
BOUND = 2e-4
PACKED = [family for family in FAMILIES if family not in UNSUPPORTED]


def some_pairs() -> list[TokenizedPair]:
    generator = torch.Generator().manual_seed(3)

    def side(prompt: Tensor, answer: int) -> Tokenized:
        own = torch.randint(VOCABULARY, (answer,), generator=generator)
        ids = torch.cat([prompt, own])
        return Tokenized(ids, torch.arange(len(ids)) >= len(prompt))

    pairs = []
    for line, (prompt, chosen, rejected) in enumerate(((11, 29, 4), (3, 1, 17), (20, 7, 9)), 1):
        start = torch.randint(VOCABULARY, (prompt,), generator=generator)
        pairs.append(TokenizedPair(line, side(start, chosen), side(start, rejected)))
    return pairs


def plain_logps(family: str, pairs: list[TokenizedPair]) -> Tensor:
    """Return log-probs of the responses, chosen first, from full logits of single sequences."""
    model = build(family).eval()
    model.set_attn_implementation("eager")
    model.config._attn_implementation = "eager"  # for code with one attention only
    logps = []
    for side in [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs]:
        logits = model(input_ids=side.ids[:-1].unsqueeze(0), use_cache=False).logits[0]
        ours = torch.log_softmax(logits, dim=-1).gather(-1, side.ids[1:].unsqueeze(-1))[:, 0]
        logps.append(ours[side.response[1:]])
    return torch.cat(logps)


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_match_the_plain_forward(family: str) -> None:
    scorer = scorer_for(build(family), LONGEST).eval()
    assert UNSUPPORTED.get(family, "") in (scorer.fallback_reason or "")
    assert (scorer.fallback_reason is None) == (family in PACKED)
    with torch.no_grad():
        expected = plain_logps(family, some_pairs())
        for layout in ("packed", "padded"):
            scores = scorer(make_batch(some_pairs(), layout, max_seq_len=LONGEST))  # type: ignore[arg-type]
            assert (scores.token_logps[scores.mask] - expected).abs().max() < BOUND, layout


@pytest.mark.parametrize("family", UNSUPPORTED)
def test_packed_rows_of_unsupported_models_fail_or_are_wrong(family: str) -> None:
    """Each reason is needed, and a trial alone would find each failure."""
    model = build(family).eval()
    with torch.no_grad():
        expected = plain_logps(family, some_pairs())
        try:
            scores = ResponseScorer(model)(make_batch(some_pairs(), "packed", max_seq_len=0))
        except Exception:
            return
    assert (scores.token_logps[scores.mask] - expected).abs().max() > 100 * BOUND


def test_window_that_fits_every_sequence_allows_packing() -> None:
    model = build("mistral-window")
    assert why_not_packed(model, 8) is None
    assert why_not_packed(model, 9) is not None


def test_trial_leaves_the_model_unchanged() -> None:
    model = build("gemma2").train()
    before = torch.get_rng_state()
    why_not_packed(model, LONGEST)
    assert model.training
    assert model.config._attn_implementation == attention.NAME
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), before)


def test_trial_is_not_longer_than_the_position_limit() -> None:
    assert why_not_packed(build("gpt2"), 4096) is None


def test_model_that_fails_every_trial_is_an_error() -> None:
    class FailingHead(torch.nn.Module):
        def forward(self, hidden: Tensor) -> Tensor:
            raise RuntimeError("not today")

    model: PreTrainedModel = build("llama")
    model.set_output_embeddings(FailingHead())  # type: ignore[arg-type]
    with pytest.raises(DpoError, match=r"LlamaForCausalLM cannot be trained.*not today"):
        scorer_for(model, LONGEST)
