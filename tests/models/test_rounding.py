"""Tests of rounding to half precision: unbiased, exact if possible, never to infinity."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dpo_cli.errors import DpoError
from dpo_cli.models.rounding import round_stochastically, round_weights

FORMATS = [torch.float16, torch.bfloat16]
SEEDS = 4000


def rounded(values: Tensor, dtype: torch.dtype, seed: int = 0) -> Tensor:
    return round_stochastically(values, dtype, torch.Generator().manual_seed(seed))


def every_number(dtype: torch.dtype) -> Tensor:
    """Return all of the 65,536 bit patterns that are finite numbers."""
    patterns = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    numbers = patterns.view(dtype)
    return numbers[numbers.isfinite()]


def neighbors(values: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the largest number not above each value, and the smallest not below it."""
    numbers = every_number(dtype).double().unique()
    above = torch.searchsorted(numbers, values.double())
    return numbers[torch.searchsorted(numbers, values.double(), right=True) - 1], numbers[above]


def some_values(dtype: torch.dtype) -> Tensor:
    """Return values of both signs and of every magnitude that the dtype and float32 share."""
    generator = torch.Generator().manual_seed(5)
    limits = torch.finfo(dtype)
    least = max(limits.smallest_normal * limits.eps, torch.finfo(torch.float32).smallest_normal)
    low, high = torch.tensor([least / 8, limits.max], dtype=torch.float64).log2().tolist()
    exponents = low + (high - low) * torch.rand(20_000, generator=generator, dtype=torch.float64)
    signs = torch.where(torch.rand(20_000, generator=generator) < 0.5, -1.0, 1.0)
    return (signs * 2.0**exponents).float().clamp(-limits.max, limits.max)


@pytest.mark.parametrize("dtype", FORMATS)
def test_representable_values_do_not_change(dtype: torch.dtype) -> None:
    """Includes subnormal numbers, zero and the largest number, with any seed."""
    numbers = every_number(dtype)
    for seed in range(3):
        assert torch.equal(rounded(numbers.float(), dtype, seed), numbers)


@pytest.mark.parametrize("dtype", FORMATS)
def test_the_result_is_one_of_the_two_neighbors(dtype: torch.dtype) -> None:
    values = some_values(dtype)
    below, above = neighbors(values, dtype)
    results = rounded(values, dtype).double()
    assert ((results == below) | (results == above)).all()
    assert (results == below).any()
    assert (results == above).any()
    assert results.isfinite().all()


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("share", [0.0625, 0.25, 0.5, 0.9375])
def test_the_mean_is_the_value(dtype: torch.dtype, share: float) -> None:
    """The upper of two neighbors is drawn in proportion to the value's position between them."""
    limits = torch.finfo(dtype)
    starts = torch.tensor([1.0, 0.25, 0.0123, limits.smallest_normal * limits.eps, limits.max / 2])
    below, above = starts.to(dtype), torch.nextafter(starts.to(dtype), torch.tensor(torch.inf))
    below = torch.cat([below, -above]).double()
    above = torch.cat([above, -starts.to(dtype)]).double()
    values = below + share * (above - below)
    generator = torch.Generator().manual_seed(11)
    drawn = [round_stochastically(values, dtype, generator).double() for _ in range(SEEDS)]
    ups = ((torch.stack(drawn) - below) / (above - below)).mean(dim=0)
    # Five standard deviations of a mean of so many draws.
    assert (ups - share).abs().max() < 5 * (share * (1 - share) / SEEDS) ** 0.5


@pytest.mark.parametrize("dtype", FORMATS)
def test_a_small_update_survives_on_average(dtype: torch.dtype) -> None:
    """A hundredth of the spacing, which rounding to nearest always loses."""
    start = torch.full((100_000,), 0.25)
    update = torch.finfo(dtype).eps * 0.25 / 100
    state = {"weight": start + update}
    nearest = round_weights(state, dtype_name(dtype), "nearest", 0)["weight"]
    assert torch.equal(nearest, start.to(dtype))
    kept = round_weights(state, dtype_name(dtype), "stochastic", 0)["weight"].double() - 0.25
    assert kept.mean().item() == pytest.approx(update, rel=0.15)
    assert 0.005 < (kept != 0).double().mean().item() < 0.015


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@pytest.mark.parametrize("dtype", FORMATS)
def test_nearest_rounds_ties_to_even(dtype: torch.dtype) -> None:
    eps = torch.finfo(dtype).eps
    ties = torch.tensor([1 + eps / 2, 1 + 3 * eps / 2, -1 - eps / 2])
    nearest = round_weights({"weight": ties}, dtype_name(dtype), "nearest", 0)["weight"].double()
    assert nearest.tolist() == [1.0, 1 + 2 * eps, -1.0]
    # Stochastic rounding draws both sides of a tie equally often.
    many = ties[:1].expand(10_000)
    assert (rounded(many, dtype) == 1.0).double().mean().item() == pytest.approx(0.5, abs=0.03)


def test_the_result_depends_on_the_seed_only() -> None:
    generator = torch.Generator().manual_seed(1)
    state = {name: torch.randn(50, 40, generator=generator) for name in ("b", "a")}
    backwards = dict(reversed(state.items()))
    first, again, other = (
        round_weights(weights, "float16", "stochastic", seed)
        for weights, seed in ((state, 7), (backwards, 7), (state, 8))
    )
    assert all(torch.equal(first[name], again[name]) for name in state)
    assert not any(torch.equal(first[name], other[name]) for name in state)
    # The global generator is not used.
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    round_weights(state, "float16", "stochastic", 7)
    assert torch.equal(torch.rand(4), expected)


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_values_beyond_the_largest_number_are_refused(rounding: str) -> None:
    """Nearest would make 65,520 infinite, and stochastic rounding has no number above."""
    largest = {"norm": torch.tensor([65504.0, -65504.0])}
    assert round_weights(largest, "float16", rounding, 0)["norm"].tolist() == [65504, -65504]  # type: ignore[arg-type]
    for value in (65504.01, -65520.0, 1e6, torch.inf):
        with pytest.raises(DpoError, match=r"norm has .* largest float16 is 65504"):
            round_weights({"norm": torch.tensor([value])}, "float16", rounding, 0)  # type: ignore[arg-type]
    with pytest.raises(DpoError, match="bfloat16"):
        round_weights({"norm": torch.tensor([3.4e38])}, "bfloat16", rounding, 0)  # type: ignore[arg-type]
    assert round_weights({"norm": torch.tensor([3.4e38])}, "float32", "nearest", 0)


def test_float32_does_not_round() -> None:
    state = {"weight": torch.randn(100)}
    assert torch.equal(round_weights(state, "float32", "nearest", 0)["weight"], state["weight"])
