"""Tests of shell completion, through the shells' own protocol."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from dpo_cli.profile.source import shipped_profiles
from tests.support.cli import environment

SCRIPT = """
import sys
from dpo_cli import __main__
sys.argv = ["dpo"]
try:
    __main__.main()
finally:
    heavy = {"torch", "transformers", "numpy"} & set(sys.modules)
    assert not heavy, heavy
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("my.toml", "profiles/first.toml", "profiles/second.toml", "pyproject.toml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    for root, name in (("runs", "first-20260101-000000-aaaa"), ("other", "second")):
        (tmp_path / root / name).mkdir(parents=True)
        (tmp_path / root / name / "profile.toml").write_text("")
    return tmp_path


def complete(folder: Path, shell: str, line: str) -> list[str]:
    """Return the completions of `shell` at the end of `line`."""
    words = line.split(" ")
    variables = {
        "bash": {"COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)},
        "zsh": {"_TYPER_COMPLETE_ARGS": line},
        "fish": {"_TYPER_COMPLETE_ARGS": line, "_TYPER_COMPLETE_FISH_ACTION": "get-args"},
    }[shell]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        cwd=folder,
        env=environment(_DPO_COMPLETE=f"complete_{shell}", **variables),
        capture_output=True,
        text=True,
    )
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.parametrize("command", ["train", "check", "sweep", "config show"])
def test_bash_offers_profiles(folder: Path, command: str) -> None:
    files = ["my.toml", "profiles/first.toml", "profiles/second.toml"]
    assert complete(folder, "bash", f"dpo {command} ") == [*shipped_profiles(), *files]


def test_bash_offers_what_begins_alike(folder: Path) -> None:
    assert complete(folder, "bash", "dpo train profiles/s") == ["profiles/second.toml"]
    assert complete(folder, "bash", "dpo train ./my") == ["./my.toml"]
    assert complete(folder, "bash", "dpo che") == ["check"]


def test_bash_offers_runs(folder: Path) -> None:
    assert complete(folder, "bash", "dpo resume ") == ["first-20260101-000000-aaaa"]
    assert complete(folder, "bash", "dpo export --runs-dir other ") == ["second"]


def test_bash_offers_models(folder: Path) -> None:
    for name in ("rlhf_512.pth", "out/full_sft_512.pth", "hf/config.json", ".venv/x.pth"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("")
    run, *paths = "first-20260101-000000-aaaa", "rlhf_512.pth", "out/full_sft_512.pth", "hf"
    assert complete(folder, "bash", "dpo eval ") == [run, *paths]
    assert complete(folder, "bash", "dpo eval first --reference o") == ["out/full_sft_512.pth"]
    assert complete(folder, "bash", "dpo merge first ./h") == ["./hf"]
    assert complete(folder, "bash", "dpo chat first --reference o") == ["out/full_sft_512.pth"]


def test_zsh_and_fish(folder: Path) -> None:
    assert '"demo"' in " ".join(complete(folder, "zsh", "dpo check d"))
    assert complete(folder, "fish", "dpo check d") == ["demo", "dense"]
    assert "first-20260101-000000-aaaa" in complete(folder, "fish", "dpo stop f")
