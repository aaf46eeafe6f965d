"""How the CPU multiplies: faster where that is exact, and as before where it is not."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from dpo_cli.training import device
from dpo_cli.training.plan import environment


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("chosen", [None, "medium", "highest"])
def test_products_stay_float32(chosen: str | None) -> None:
    device.choose_matmul(chosen)
    if chosen is not None:  # a resume multiplies as the run began
        assert torch.get_float32_matmul_precision() == chosen
    for shape in ((700, 512, 1408), (64, 512, 6400), (3, 640, 33)):
        assert device._matmul_error(*shape) < device._FLOAT32_ERROR


@pytest.mark.parametrize(("seconds", "expected"), [(1.0, "highest"), (1.5, "medium")])
def test_a_small_gain_is_no_reason(
    seconds: float, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clock that shows how long each setting takes, "medium" always a second."""
    now = 0.0
    matmul = torch.Tensor.__matmul__

    def timed(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        nonlocal now
        now += 1.0 if torch.get_float32_matmul_precision() == "medium" else seconds
        return matmul(left, right)

    monkeypatch.setattr(torch.Tensor, "__matmul__", timed)
    monkeypatch.setattr(device.time, "perf_counter", lambda: now)
    device.choose_matmul()
    assert torch.get_float32_matmul_precision() == expected


def test_a_setting_that_rounds_is_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """On hardware that really multiplies in bfloat16: acted here, by rounding what goes in."""
    matmul = torch.Tensor.__matmul__

    def rounded(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        if left.dtype == torch.float32 and torch.get_float32_matmul_precision() == "medium":
            left, right = left.bfloat16().float(), right.bfloat16().float()
        return matmul(left, right)

    monkeypatch.setattr(torch.Tensor, "__matmul__", rounded)
    device.choose_matmul("medium")
    assert torch.get_float32_matmul_precision() == "highest"
    assert device._matmul_error(700, 512, 1408) < device._FLOAT32_ERROR


@pytest.mark.parametrize(("tf32", "expected"), [(False, "highest"), (True, "high")])
def test_tf32_is_asked_for_on_cuda_alone_and_stands_in_the_plan(tf32: bool, expected: str) -> None:
    """Which torch calls "high"; on CUDA it is TF32. Setting it needs no card."""
    device.tune(device.Compute(torch.device("cuda"), torch.float32), None, tf32=tf32)
    assert torch.get_float32_matmul_precision() == environment()["float32_matmul"] == expected
    device.tune(device.Compute(torch.device("cpu"), torch.float32), "highest", tf32=tf32)
    assert torch.get_float32_matmul_precision() == "highest"
