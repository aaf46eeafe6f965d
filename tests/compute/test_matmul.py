"""Tests of float32 products on a CPU: the processor chooses the library; products stay exact."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from dpo_cli.compute import matmul
from dpo_cli.training.plan import environment


@pytest.fixture(autouse=True)
def restored_precision() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("saved", [None, "medium", "highest"])
def test_products_stay_float32(saved: str | None) -> None:
    matmul.set_cpu_matmul(saved)
    if saved is not None:
        assert torch.get_float32_matmul_precision() == saved
    for shape in ((700, 512, 1408), (64, 512, 6400), (3, 640, 33)):
        assert matmul._product_error(*shape) < matmul._MAX_FLOAT32_ERROR


@pytest.mark.parametrize(("is_slow", "expected"), [(False, "highest"), (True, "medium")])
def test_the_processor_decides(
    is_slow: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matmul, "_mkl_is_slow", lambda: is_slow)
    for _ in range(2):
        matmul.set_cpu_matmul()
        assert torch.get_float32_matmul_precision() == expected


def test_neither_a_clock_nor_the_cache_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With 20 empty caches and random clocks, the library is always the same."""
    clocks = ("time", "monotonic", "perf_counter", "process_time", "thread_time")
    for name in (*clocks, *(f"{name}_ns" for name in clocks)):
        monkeypatch.setattr(time, name, lambda: random.random() * 1e6)
    chosen = set()
    for number in range(20):
        monkeypatch.setenv("DPO_CACHE_DIR", str(tmp_path / str(number)))
        matmul.set_cpu_matmul()
        chosen.add(torch.get_float32_matmul_precision())
    assert len(chosen) == 1
    assert not list(tmp_path.iterdir())


def test_the_choice_is_in_the_plan_and_is_kept_by_a_resume() -> None:
    for precision in ("medium", "highest"):
        torch.set_float32_matmul_precision(precision)
        assert environment()["float32_matmul"] == precision


def test_a_setting_that_rounds_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulates a processor on which "medium" multiplies in bfloat16, by rounding the factors."""
    multiply = torch.Tensor.__matmul__

    def rounded(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        if left.dtype == torch.float32 and torch.get_float32_matmul_precision() == "medium":
            left, right = left.bfloat16().float(), right.bfloat16().float()
        return multiply(left, right)

    monkeypatch.setattr(torch.Tensor, "__matmul__", rounded)
    matmul.set_cpu_matmul("medium")
    assert torch.get_float32_matmul_precision() == "highest"
    assert matmul._product_error(700, 512, 1408) < matmul._MAX_FLOAT32_ERROR
