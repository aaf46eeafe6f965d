"""Command lines that users read and paste."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

import pytest

from dpo_cli.shell import dpo_command, join, program, quote


@pytest.mark.parametrize(
    ("word", "quoted"),
    [
        ("runs/my-run", "runs/my-run"),
        ("train.epochs=1", "train.epochs=1"),
        ("a b", '"a b"'),
        ("it's", '"it\'s"'),
        ("dpo.beta=[0.1,2]", '"dpo.beta=[0.1,2]"'),
        ("~/x", '"~/x"'),
        ('say "hi"', "'say \"hi\"'"),
        ("$HOME", "'$HOME'"),
        ("", "''"),
    ],
)
def test_a_word_is_quoted_with_double_quotes_where_they_are_enough(word: str, quoted: str) -> None:
    assert quote(word) == quoted
    assert shlex.split(quoted) == [word]


def test_words_are_split_again_as_they_were() -> None:
    words = ["a", "b c", "it's", 'x = {"a": 1}', "`ls`", "\\", "!", "中文", "new\nline", "*"]
    assert shlex.split(join(words)) == words


def executable(path: Path) -> Path:
    path.parent.mkdir(parents=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


def test_the_program_is_named_as_it_was_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = executable(tmp_path / ".venv/bin/dpo")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", os.defpath)
    monkeypatch.setattr(sys, "argv", [".venv/bin/dpo", "train"])
    assert dpo_command("resume", "my run") == '.venv/bin/dpo resume "my run"'
    monkeypatch.setenv("PATH", f"{script.parent}:{os.defpath}")
    assert program() == "dpo"
    monkeypatch.setattr(sys, "argv", [str(script)])
    assert program() == "dpo"
    # Another dpo is on the path.
    other = executable(tmp_path / "other/bin/dpo")
    monkeypatch.setenv("PATH", f"{other.parent}:{os.defpath}")
    assert program() == ".venv/bin/dpo"


@pytest.mark.parametrize("called", ["/x/dpo_cli/__main__.py", "train.py", ""])
def test_elsewhere_the_program_is_dpo(monkeypatch: pytest.MonkeyPatch, called: str) -> None:
    monkeypatch.setattr(sys, "argv", [called])
    assert program() == "dpo"
