"""Fixtures for commands: `dpo` in this process, and folders with runs and a profile."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from dpo_cli import app

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def dpo(capsys: pytest.CaptureFixture[str]) -> Cli:
    """Run `dpo` in this process; return exit code, standard output and standard error."""

    def run(*arguments: str) -> tuple[int, str, str]:
        code = app.main(list(arguments))
        output = capsys.readouterr()
        return code, output.out, output.err

    return run


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder of runs in an empty working directory, and a terminal of unlimited width."""
    for name in ("DPO_RUNS_DIR", "COLUMNS", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return Path("runs")


@pytest.fixture
def directory(root: Path, tmp_path: Path) -> Path:
    """Working directory with a profile mine.toml whose inputs exist, and runs in ./runs."""
    (tmp_path / "tokenizer").mkdir()
    for file in ("tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json", "pairs.jsonl"):
        (tmp_path / file).write_text("{}")
    (tmp_path / "full_sft_512.pth").write_text("weights")
    (tmp_path / "mine.toml").write_text(
        '[model]\nweights = "./full_sft_512.pth"\ntokenizer = "tokenizer"\n'
        '[data]\ndata_path = "pairs.jsonl"\n'
    )
    return tmp_path
