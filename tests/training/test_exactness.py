"""The packed layout with a cached reference equals the padded layout.

In float64 to 1e-10 over 20 steps; in float32 to 1e-5 in a step's gradients, and over 20 steps to
the drift that a change of the last bit of the weights causes in the padded layout itself.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from dpo_cli.data.batching import Batch, Layout, make_batch
from dpo_cli.models.scoring import _ROUTER_CLASSES, ResponseScorer, _record_router_logits
from tests.support.two_layouts import (
    ARCHITECTURES,
    Float64,
    Recorder,
    family_scorer,
    make_trainer,
    minimind_scorer,
    odd_pairs,
)

BOUND = 1e-10
LAYOUTS: tuple[Layout, ...] = ("packed", "padded")
FALLBACKS = ("mistral-window", "gemma2", "gpt-oss")
FAMILIES = ("llama", "qwen3", "qwen3-moe", "gpt2", "mistral", *FALLBACKS)


def compare_over_20_steps(make_scorer: Callable[[Layout], ResponseScorer], **dpo: Any) -> None:
    recorders = {}
    for layout in LAYOUTS:
        recorders[layout] = hooks = Recorder()
        with Float64():
            assert make_trainer(make_scorer, layout, hooks, **dpo).train() is None
    packed, padded = recorders["packed"], recorders["padded"]
    assert len(packed.steps) == len(padded.steps) == 20
    for ours, expected in zip(packed.steps, padded.steps, strict=True):
        assert ours.losses == pytest.approx(expected.losses, abs=BOUND, rel=0)
        for figure, value in expected.metrics.items():
            assert ours.metrics[figure] == pytest.approx(value, abs=1e-8, rel=BOUND), figure
    for ours, expected in zip(packed.gradients, padded.gradients, strict=True):
        assert (ours - expected).abs().max() < BOUND
    # Precondition: the weights moved, and every step had new losses.
    assert len({step.losses for step in packed.steps}) == 20
    assert max(gradient.norm() for gradient in packed.gradients) > 1e-2


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_packed_equals_reference_over_20_steps(name: str, reduction: str) -> None:
    compare_over_20_steps(partial(minimind_scorer, name), reduction=reduction)


@pytest.mark.parametrize(
    "dpo",
    [
        {"loss": ["aot", "sft"], "loss_weights": [1.0, 0.2]},
        {"loss": "simpo", "reduction": "mean"},
        {"loss": "hinge", "ld_alpha": 0.4, "use_weighting": True},
    ],
    ids=str,
)
def test_other_losses_over_20_steps(dpo: dict[str, Any]) -> None:
    """Covers losses of whole micro-batches, without a reference, or with weights from logits."""
    compare_over_20_steps(partial(minimind_scorer, "minimind2"), **dpo)


def test_weights_from_the_logits_of_a_model_that_fell_back() -> None:
    compare_over_20_steps(partial(family_scorer, "gemma2"), use_weighting=True)


@pytest.mark.parametrize("family", FAMILIES)
def test_other_families_packed_or_fallen_back(family: str) -> None:
    """Compares with transformers' own plain attention, which has windows, softcaps and sinks."""
    assert (family_scorer(family, "packed").fallback_reason is not None) == (family in FALLBACKS)
    compare_over_20_steps(partial(family_scorer, family))


FLOAT32: dict[str, Callable[[Layout], ResponseScorer]] = {
    **{name: partial(minimind_scorer, name) for name in ARCHITECTURES},
    **{name: partial(family_scorer, name) for name in FAMILIES},
}


def smallest_routing_margin(scorer: ResponseScorer, batch: Batch) -> float:
    """Return the smallest margin between the last chosen expert and the first one not chosen."""
    routers = [m for m in scorer.model.modules() if type(m).__name__.endswith(_ROUTER_CLASSES)]
    kept: list[Tensor] = []
    hooks = [m.register_forward_hook(partial(_record_router_logits, kept)) for m in routers]
    with torch.no_grad():
        scorer(batch)
    for hook in hooks:
        hook.remove()
    top_k = scorer.model.config.num_experts_per_tok
    best = [logits.topk(top_k + 1, dim=-1).values for logits in kept]
    return min(float((layer[:, top_k - 1] - layer[:, top_k]).min()) for layer in best)


@pytest.mark.parametrize("name", FLOAT32)
def test_a_steps_gradients_in_float32(name: str) -> None:
    gradients: dict[Layout, dict[str, Tensor]] = {}
    for layout in LAYOUTS:
        trainer = make_trainer(FLOAT32[name], layout, Recorder(), dtype=torch.float32)
        indices = trainer.inputs.order.micro_batches_of(0)[0]
        batch = trainer.inputs.batches.make_batch(trainer.inputs.pairs, indices)
        if "moe" in name:  # rounding would decide a tie, and the gradients would differ
            assert smallest_routing_margin(trainer.policy, batch) > 1e-5
        pairs, balance = trainer.score(batch, trainer.reference.token_logps(indices, batch))
        (pairs.losses.mean() + (0.0 if balance is None else 0.1 * balance)).backward()
        gradients[layout] = {
            weight: parameter.grad
            for weight, parameter in trainer.policy.named_parameters()
            if parameter.grad is not None
        }
    for weight, expected in gradients["padded"].items():
        error = (gradients["packed"][weight] - expected).norm() / expected.norm()
        assert error < 1e-5, weight


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", FLOAT32)
def test_equal_weights_have_equal_bits_in_the_first_epoch(name: str, layout: Layout) -> None:
    """The policy trains with gradients, the reference runs without; both run the same kernels."""
    trainer = make_trainer(FLOAT32[name], layout, Recorder(), dtype=torch.float32)
    trainer.policy.train()
    for indices in trainer.inputs.batches.reference_batches:
        batch = trainer.inputs.batches.make_batch(trainer.inputs.pairs, indices)
        pairs, _ = trainer.score(batch, trainer.reference.token_logps(indices, batch))
        assert pairs.kl is not None
        assert not pairs.kl.any()
        assert not pairs.margins.any()
        assert pairs.ties.all()
        assert (pairs.accuracies == 0.5).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", FLOAT32)
def test_equal_weights_tie_whatever_is_computed_with_them(name: str, dtype: torch.dtype) -> None:
    """Pairs scored alone differ in the last bits from the same pairs scored together."""
    with Float64() if dtype is torch.float64 else nullcontext():
        trainer = make_trainer(FLOAT32[name], "packed", Recorder(), dtype=dtype)
        for index in range(len(trainer.inputs.pairs)):
            batch = trainer.inputs.batches.make_batch(trainer.inputs.pairs, [index])
            pairs, _ = trainer.score(batch, trainer.reference.token_logps([index], batch))
            assert pairs.margins.abs().max() < 1e-4
            assert pairs.ties.all()
            assert (pairs.accuracies == 0.5).all()


def all_weights(scorer: ResponseScorer) -> Tensor:
    return torch.cat([weight.detach().flatten().double() for weight in scorer.parameters()])


@pytest.mark.parametrize("name", FLOAT32)
def test_20_steps_in_float32_drift_no_further_than_a_last_bit_does(name: str) -> None:
    """The padded layout is run twice, once from weights that are off by a 1e-7th."""

    def shaken(layout: Layout) -> ResponseScorer:
        scorer = FLOAT32[name](layout)
        generator = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for weight in scorer.parameters():
                weight.mul_(1 + 1e-7 * torch.randn(weight.shape, generator=generator).sign())
        return scorer

    runs = {}
    for run, make_scorer, layout in (
        ("packed", FLOAT32[name], "packed"),
        ("reference", FLOAT32[name], "padded"),
        ("shaken", shaken, "padded"),
    ):
        hooks = Recorder()
        trainer = make_trainer(make_scorer, layout, hooks, dtype=torch.float32)  # type: ignore[arg-type]
        start = all_weights(trainer.policy)
        assert trainer.train() is None
        losses = torch.tensor([step.losses for step in hooks.steps])
        runs[run] = (all_weights(trainer.policy) - start, losses)
    for ours, expected, shaken_ones in zip(*runs.values(), strict=True):
        drift = (shaken_ones - expected).norm()
        assert 0 < drift < 1e-3 * expected.norm()
        assert (ours - expected).norm() <= 3 * drift


def test_sharing_a_prompt_changes_nothing() -> None:
    """Without sharing (as under dropout) the packed layout computes the same log-probs."""
    with Float64(), torch.no_grad():
        scorer = minimind_scorer("minimind3", "packed").double()
        shared, alone = (
            scorer(
                make_batch(odd_pairs(), "packed", max_seq_len=0, share_prompts=share)
            ).token_logps
            for share in (True, False)
        )
    assert (shared - alone).abs().max() < BOUND
