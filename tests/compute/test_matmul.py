"""How the CPU multiplies: faster where that is exact, and as before where it is not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest
import torch

from dpo_cli.compute import matmul


@pytest.fixture(autouse=True)
def as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("DPO_CACHE_DIR", str(tmp_path / "cache"))
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("chosen", [None, "medium", "highest"])
def test_products_stay_float32(chosen: str | None) -> None:
    matmul.choose_matmul(chosen)
    if chosen is not None:  # a resume multiplies as the run began
        assert torch.get_float32_matmul_precision() == chosen
    for shape in ((700, 512, 1408), (64, 512, 6400), (3, 640, 33)):
        assert matmul._matmul_error(*shape) < matmul._FLOAT32_ERROR


@pytest.mark.parametrize(("seconds", "expected"), [(1.0, "highest"), (1.5, "medium")])
def test_a_small_gain_is_no_reason(
    seconds: float, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clock that shows how long each setting takes, "medium" always a second."""
    now = 0.0
    multiply = torch.Tensor.__matmul__

    def timed(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        nonlocal now
        now += 1.0 if torch.get_float32_matmul_precision() == "medium" else seconds
        return multiply(left, right)

    monkeypatch.setattr(torch.Tensor, "__matmul__", timed)
    monkeypatch.setattr(matmul.time, "perf_counter", lambda: now)
    matmul.choose_matmul()
    assert torch.get_float32_matmul_precision() == expected


def test_a_setting_that_rounds_is_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """On hardware that really multiplies in bfloat16: acted here, by rounding what goes in."""
    multiply = torch.Tensor.__matmul__

    def rounded(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        if left.dtype == torch.float32 and torch.get_float32_matmul_precision() == "medium":
            left, right = left.bfloat16().float(), right.bfloat16().float()
        return multiply(left, right)

    monkeypatch.setattr(torch.Tensor, "__matmul__", rounded)
    matmul.choose_matmul("medium")
    assert torch.get_float32_matmul_precision() == "highest"
    assert matmul._matmul_error(700, 512, 1408) < matmul._FLOAT32_ERROR


def memory() -> Path:
    return cast(Path, matmul._memory())


def test_what_was_found_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second, luckier look at the clock must not make an equal run multiply otherwise."""
    for found in ("medium", "highest"):
        monkeypatch.setattr(matmul, "_faster_matmul", lambda found=found: found)
        matmul.choose_matmul()
        assert torch.get_float32_matmul_precision() == "medium"
    matmul.choose_matmul("highest")  # a resume holds to its own
    assert torch.get_float32_matmul_precision() == "highest"


def test_of_two_who_try_at_once_both_take_what_the_first_has_found() -> None:
    assert matmul._remember("medium") == "medium"
    assert matmul._remember("highest") == "medium"
    assert len(list(memory().parent.iterdir())) == 1


def test_a_memory_that_is_none_is_replaced() -> None:
    memory().parent.mkdir()
    memory().write_bytes(b"\xff")
    assert matmul._remember("medium") == "medium"
    assert memory().read_text() == "medium"


def test_where_files_cannot_be_linked_it_is_remembered_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(matmul.os, "link", refuse)
    assert matmul._remember("medium") == "medium"
    assert matmul._remember("highest") == "medium"
    assert len(list(memory().parent.iterdir())) == 1


def test_without_a_place_to_remember_all_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DPO_CACHE_DIR", str(tmp_path / "file" / "cache"))
    assert matmul._remember("medium") == "medium"
    assert matmul._remember("highest") == "highest"
