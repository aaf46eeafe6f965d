"""The scripts in examples/ run as their docstrings describe."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.support.cli import HANG_SECONDS, REPOSITORY, run_in


def test_train_and_export(tmp_path: Path) -> None:
    script = REPOSITORY / "examples/train_and_export.py"
    done = run_in(tmp_path, [sys.executable, str(script), "1"], timeout=HANG_SECONDS)
    assert done.returncode == 0, done.stderr
    assert "step 40: loss" in done.stdout
    assert "example-" in done.stdout
    assert "completed" in done.stdout
    assert "evaluated on 96 pairs" in done.stdout
    assert (tmp_path / "example-model/model.safetensors").is_file()
    assert len(list((tmp_path / "runs").iterdir())) == 1
