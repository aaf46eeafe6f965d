"""The script and the notebook in examples/ run as they are written."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.cli import HANG_SECONDS, REPOSITORY, run_in

NOTEBOOK = REPOSITORY / "examples/quickstart.ipynb"
KERNEL = """
import subprocess, sys
from types import SimpleNamespace

def display(shown, display_id=False):
    def update(shown):
        panels.append(shown._repr_mimebundle_()["text/html"])
    print("shown:", str(shown)[:40])
    return SimpleNamespace(update=update)

panels = []
kernel = SimpleNamespace(kernel=object())
sys.modules["IPython"] = SimpleNamespace(get_ipython=lambda: kernel)
read = lambda name: open(name).read()
sys.modules["IPython.display"] = SimpleNamespace(display=display, SVG=read)
"""
"""Stand-in of a notebook's kernel: it prints the beginning of what is shown."""


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


@pytest.fixture(scope="module")
def cells() -> list[dict[str, Any]]:
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    found: list[dict[str, Any]] = notebook["cells"]
    return found


def test_the_notebook_is_stored_without_outputs(cells: list[dict[str, Any]]) -> None:
    assert len({cell["id"] for cell in cells}) == len(cells)
    for cell in cells:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None


def test_the_cells_of_the_notebook_run_in_order(
    cells: list[dict[str, Any]], tmp_path: Path
) -> None:
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    assert code.count("EPOCHS = 8") == 1
    lines = [_as_python(line) for line in code.replace("EPOCHS = 8", "EPOCHS = 1").splitlines()]
    script = tmp_path / "cells.py"
    script.write_text("\n".join([KERNEL, *lines, "print(panels[-1])"]), encoding="utf-8")
    done = run_in(tmp_path, [sys.executable, str(script)], timeout=HANG_SECONDS)
    assert done.returncode == 0, done.stderr
    assert "96 held-out pairs\n" in done.stdout
    assert "shown: <svg" in done.stdout
    assert "ready to train\n" in done.stdout
    assert "wrote my-model: " in done.stdout
    assert "completed" in done.stdout[done.stdout.index("wrote my-model") :]  # the panel
    assert len(list((tmp_path / "runs").iterdir())) == 2


def _as_python(line: str) -> str:
    """Return a line without the notebook's commands: none is installed, and `dpo` is this one."""
    if line.startswith(("%pip ", "!pip ")):
        return ""
    if line.startswith("!dpo "):
        words = shlex.split(line.removeprefix("!dpo "))
        return f"subprocess.run([sys.executable, '-m', 'dpo_cli', *{words!r}], check=True)"
    assert not line.startswith(("%", "!")), line
    return line
