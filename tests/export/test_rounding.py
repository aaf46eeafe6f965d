"""Rounding to half precision: unbiased, exact where it can be, never to infinity."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dpo_cli.errors import DpoError
from dpo_cli.export.rounding import round_stochastically, round_weights

FORMATS = [torch.float16, torch.bfloat16]
SEEDS = 4000


def rounded(values: Tensor, dtype: torch.dtype, seed: int = 0) -> Tensor:
    return round_stochastically(values, dtype, torch.Generator().manual_seed(seed))


def every_number(dtype: torch.dtype) -> Tensor:
    """All 65,536 bit patterns that are finite numbers."""
    patterns = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    numbers = patterns.view(dtype)
    return numbers[numbers.isfinite()]


def neighbours(values: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The largest number of the format not above each value, and the smallest not below."""
    numbers = every_number(dtype).double().unique()
    above = torch.searchsorted(numbers, values.double())
    return numbers[torch.searchsorted(numbers, values.double(), right=True) - 1], numbers[above]


def some_values(dtype: torch.dtype) -> Tensor:
    """Of every magnitude that the format and float32 have in common, of both signs."""
    generator = torch.Generator().manual_seed(5)
    limits = torch.finfo(dtype)
    least = max(limits.smallest_normal * limits.eps, torch.finfo(torch.float32).smallest_normal)
    low, high = torch.tensor([least / 8, limits.max], dtype=torch.float64).log2().tolist()
    exponents = low + (high - low) * torch.rand(20_000, generator=generator, dtype=torch.float64)
    signs = torch.where(torch.rand(20_000, generator=generator) < 0.5, -1.0, 1.0)
    return (signs * 2.0**exponents).float().clamp(-limits.max, limits.max)


@pytest.mark.parametrize("dtype", FORMATS)
def test_what_the_format_holds_stays(dtype: torch.dtype) -> None:
    """Every number of it, subnormal ones, zero and the largest included, whatever is drawn."""
    numbers = every_number(dtype)
    for seed in range(3):
        assert torch.equal(rounded(numbers.float(), dtype, seed), numbers)


@pytest.mark.parametrize("dtype", FORMATS)
def test_it_is_one_of_the_two_neighbours(dtype: torch.dtype) -> None:
    values = some_values(dtype)
    below, above = neighbours(values, dtype)
    results = rounded(values, dtype).double()
    assert ((results == below) | (results == above)).all()
    assert (results == below).any()
    assert (results == above).any()
    assert results.isfinite().all()


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("share", [0.0625, 0.25, 0.5, 0.9375])
def test_the_mean_is_the_value(dtype: torch.dtype, share: float) -> None:
    """Between two numbers next to each other, the upper one is drawn in its share of all seeds."""
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
def test_a_small_update_survives_in_the_mean(dtype: torch.dtype) -> None:
    """A hundredth of the spacing, which the nearest number never shows."""
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
def test_nearest_takes_the_even_of_two_that_are_as_near(dtype: torch.dtype) -> None:
    eps = torch.finfo(dtype).eps
    ties = torch.tensor([1 + eps / 2, 1 + 3 * eps / 2, -1 - eps / 2])
    nearest = round_weights({"weight": ties}, dtype_name(dtype), "nearest", 0)["weight"].double()
    assert nearest.tolist() == [1.0, 1 + 2 * eps, -1.0]
    # Of a tie both are drawn as often.
    many = ties[:1].expand(10_000)
    assert (rounded(many, dtype) == 1.0).double().mean().item() == pytest.approx(0.5, abs=0.03)


def test_the_seed_alone_decides() -> None:
    generator = torch.Generator().manual_seed(1)
    state = {name: torch.randn(50, 40, generator=generator) for name in ("b", "a")}
    backwards = dict(reversed(state.items()))
    first, again, other = (
        round_weights(weights, "float16", "stochastic", seed)
        for weights, seed in ((state, 7), (backwards, 7), (state, 8))
    )
    assert all(torch.equal(first[name], again[name]) for name in state)
    assert not any(torch.equal(first[name], other[name]) for name in state)
    # Nothing else's random numbers are touched.
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    round_weights(state, "float16", "stochastic", 7)
    assert torch.equal(torch.rand(4), expected)


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_beyond_the_largest_number_it_refuses(rounding: str) -> None:
    """Nearest would make 65,520 infinite, and stochastic rounding has no number above."""
    held = {"norm": torch.tensor([65504.0, -65504.0])}
    assert round_weights(held, "float16", rounding, 0)["norm"].tolist() == [65504, -65504]  # type: ignore[arg-type]
    for value in (65504.01, -65520.0, 1e6, torch.inf):
        with pytest.raises(DpoError, match=r"norm holds .* of float16 is 65504"):
            round_weights({"norm": torch.tensor([value])}, "float16", rounding, 0)  # type: ignore[arg-type]
    with pytest.raises(DpoError, match="bfloat16"):
        round_weights({"norm": torch.tensor([3.4e38])}, "bfloat16", rounding, 0)  # type: ignore[arg-type]
    assert round_weights({"norm": torch.tensor([3.4e38])}, "float32", "nearest", 0)


def test_float32_is_the_state_itself() -> None:
    state = {"weight": torch.randn(100)}
    assert torch.equal(round_weights(state, "float32", "nearest", 0)["weight"], state["weight"])
