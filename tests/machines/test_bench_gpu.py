"""Tests of `make bench-gpu`: results are saved at once and kept, and a call ends in time."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.support.cli import REPOSITORY

PART = {
    "dtype": "bfloat16",
    "pairs": 96,
    "step_seconds": [0.5, 0.5, 1.0],
    "gflop_a_pair": 100.0,
    "gflops_a_second_of_product": 9600,
    "peak_bytes": 3_000_000_000,
    "launches": 1234,
    "kernel_seconds": 0.4,
    "last_loss": 0.693147,
}


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    import gpu

    yield gpu
    for name in ("gpu", "steps", "inputs"):
        sys.modules.pop(name, None)


def options(**changes: Any) -> argparse.Namespace:
    return argparse.Namespace(quick=True, trl=None, **changes)


class Parts:
    """Fake `_run_json` that returns given results of parts."""

    def __init__(self, results: dict[str, dict[str, Any] | None]) -> None:
        self.results, self.ran = results, list[str]()

    def __call__(self, command: list[str], seconds: float) -> dict[str, Any] | None:
        name = command[command.index("--part") + 1]
        self.ran.append(name)
        result = self.results.get(name, PART)
        return result and dict(result)


def test_parts_are_saved_at_once_and_not_repeated(
    gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, device = tmp_path / "card.json", {"name": "Card", "torch": "2"}

    def fail_at_the_third(command: list[str], seconds: float) -> dict[str, Any] | None:
        if len(parts.ran) == 2:
            raise KeyboardInterrupt
        return parts(command, seconds)

    parts = Parts({"MiniMind, tiny/dpo, cold": {"error": "CUDA out of memory"}})
    monkeypatch.setattr(gpu, "_run_json", fail_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        gpu.run_missing(options(), gpu._load_report(path, device), path, tmp_path)
    saved = json.loads(path.read_text(encoding="utf-8"))["parts"]
    assert [*saved] == ["MiniMind, tiny/plain loop", "MiniMind, tiny/dpo, cold"]

    parts = Parts({})
    monkeypatch.setattr(gpu, "_run_json", parts)
    report = gpu._load_report(path, device)
    assert gpu.run_missing(options(), report, path, tmp_path) == 0
    assert not {*saved} & {*parts.ran}
    assert len(parts.ran) == 4  # a failed part is a result, too; without TRL its parts are left out
    assert gpu.run_missing(options(), report, path, tmp_path) == 0
    assert len(parts.ran) == 4

    with_trl = options()
    with_trl.trl = Path("python")
    gpu.run_missing(with_trl, report, path, tmp_path)
    assert parts.ran[4:] == ["MiniMind, tiny/TRL", "Qwen3, tiny/TRL"]
    assert gpu._load_report(path, {**device, "torch": "3"})["parts"] == {}

    table = gpu.as_table(json.loads(path.read_text(encoding="utf-8")))
    assert table.startswith("# Card\n\ntorch 2.")
    assert "| MiniMind, tiny, dpo, cold | CUDA out of memory |" in table
    assert (
        "| Qwen3, tiny, dpo, warm | bfloat16 | 48.00 | 1.00 | 50.0% | 3,000 | 1,234 | 80% | 0.69315"
    ) in table


def test_a_call_ends_in_time(
    gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 0.0, 400.0, 590.0])
    monkeypatch.setattr(gpu.time, "monotonic", lambda: next(clock))
    parts = Parts({"MiniMind, tiny/plain loop": None})
    monkeypatch.setattr(gpu, "_run_json", parts)
    report: dict[str, Any] = {"parts": {}}
    # The first part had the time of a whole call and gave no result; then the time is over.
    assert gpu.run_missing(options(), report, tmp_path / "card.json", tmp_path) == 4
    assert "no result" in report["parts"]["MiniMind, tiny/plain loop"]["error"]
    assert parts.ran == ["MiniMind, tiny/plain loop", "MiniMind, tiny/dpo, cold"]

    clock = iter([0.0, 500.0])
    parts = Parts({"MiniMind, tiny/dpo, warm": None})
    monkeypatch.setattr(gpu, "_run_json", parts)
    assert gpu.run_missing(options(), report, tmp_path / "card.json", tmp_path) == 4
    assert "MiniMind, tiny/dpo, warm" not in report["parts"], "the next call tries it again"


def test_pairs_are_the_same_on_every_machine(gpu: ModuleType, tmp_path: Path) -> None:
    for name in ("a", "b"):
        gpu.write_pairs(tmp_path / name, 20, 1.0)
    text = (tmp_path / "a").read_text(encoding="utf-8")
    assert text == (tmp_path / "b").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    assert len(rows) == 20
    assert all(row["chosen"][0] == row["rejected"][0] for row in rows)
    assert all(row["chosen"][1] != row["rejected"][1] for row in rows)


def test_a_part_on_a_cpu(gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One real part, in the process that `run_missing` would start."""
    script = str(REPOSITORY / "benchmarks/gpu.py")
    command = [sys.executable, script, "--device", "cpu", "--quick"]
    command += ["--part", "Qwen3, tiny/dpo, cold", "--folder", str(tmp_path)]
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    result = gpu._run_json(command, gpu.SECONDS)
    assert result.get("error") is None, result
    assert result["pairs"] == 8
    assert len(result["step_seconds"]) == 2
    assert result["launches"] > 1000
    assert result["peak_bytes"] > 1 << 27
    assert result["first_loss"] == pytest.approx(0.693147, abs=1e-5)
    report = {"device": {"name": "CPU"}, "parts": {"Qwen3, tiny/dpo, cold": result}}
    assert "| Qwen3, tiny, dpo, cold | float32 |" in gpu.as_table(report)
