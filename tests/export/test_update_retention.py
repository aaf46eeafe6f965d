"""Tests of the update retention of two weights, with figures computed by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from dpo_cli.export.update_retention import measure_update_retention
from dpo_cli.models.loading import ModelWeights, load_model_weights
from dpo_cli.models.minimind import MiniMind
from dpo_cli.models.rounding import round_weights

SPACING = 2.0**-12
"""Spacing of float16 at 0.25."""


@pytest.fixture
def start(golden: Path) -> ModelWeights:
    """Two weights; the architecture does not matter here."""
    architecture = load_model_weights(golden / "arch/seed/full_sft_64.pth", {}).architecture
    return model_weights(architecture, torch.tensor([0.25, 0.25]).half())


def model_weights(architecture: MiniMind, weights: Tensor) -> ModelWeights:
    return ModelWeights(architecture, {"weight": weights}, weights.dtype, "")


def state(*weights: float) -> dict[str, Tensor]:
    return {"weight": torch.tensor(weights)}


def test_a_lost_update(start: ModelWeights) -> None:
    trained = state(0.25 + SPACING / 4, 0.25 - SPACING / 8)
    retention = measure_update_retention(start, trained, state(0.25, 0.25), "float16")
    assert retention is not None
    assert retention.changed == 0.0
    assert retention.kept == 0.0
    assert retention.relative_error == 1.0
    assert retention.start_error == 0.0
    assert retention.source_dtype == "float16"


def test_one_of_two_updates_is_lost_and_one_is_too_large(start: ModelWeights) -> None:
    """Updates of 3/4 and 1/4 of the spacing: one rounds up to the spacing, the other to zero."""
    trained = state(0.25 + 3 * SPACING / 4, 0.25 + SPACING / 4)
    retention = measure_update_retention(start, trained, state(0.25 + SPACING, 0.25), "float16")
    assert retention is not None
    assert retention.changed == 0.5
    assert retention.kept == pytest.approx((4 * 3 + 0) / (9 + 1))
    assert retention.relative_error == pytest.approx(((1 + 1) / (9 + 1)) ** 0.5)


def test_float32_has_all_of_it(start: ModelWeights) -> None:
    trained = state(0.25 + 1e-6, 0.25)
    retention = measure_update_retention(start, trained, trained, "float32")
    assert retention is not None
    assert (retention.changed, retention.kept, retention.relative_error) == (0.5, 1.0, 0.0)


def test_no_weight_has_changed(start: ModelWeights) -> None:
    assert measure_update_retention(start, state(0.25, 0.25), state(0.25, 0.25), "float16") is None


def test_a_dtype_other_than_that_of_the_starting_weights(start: ModelWeights) -> None:
    """0.25 plus one spacing of float16 is no bfloat16 number: its spacing is 8 times as large."""
    source_dtype = model_weights(start.architecture, torch.tensor([0.25 + SPACING, 0.25]).half())
    trained = state(0.25 + 2 * SPACING, 0.25)
    retention = measure_update_retention(source_dtype, trained, state(0.25, 0.25), "bfloat16")
    assert retention is not None
    assert retention.changed == 0.0  # compared with the rounded starting weights
    assert retention.start_error == 1.0
    assert retention.relative_error == 2.0
    assert retention.kept == -1.0


def test_stochastic_rounding_preserves_the_mean_and_adds_noise(start: ModelWeights) -> None:
    """One weight in a hundred changes by the spacing, instead of each by a hundredth of it."""
    weights = torch.full((200_000,), 0.25)
    source_dtype = model_weights(start.architecture, weights.half())
    trained = {"weight": weights + SPACING / 100}
    rounded = round_weights(trained, "float16", "stochastic", 3)
    retention = measure_update_retention(source_dtype, trained, rounded, "float16")
    assert retention is not None
    assert retention.changed == pytest.approx(0.01, rel=0.1)
    assert retention.kept == pytest.approx(1.0, rel=0.1)
    # A weight rounds up with probability p: noise sqrt(p (1 - p)) for an update of p spacings.
    assert retention.relative_error == pytest.approx((0.99 / 0.01) ** 0.5, rel=0.05)
