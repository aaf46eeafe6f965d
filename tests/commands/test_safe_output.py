"""Tests that no command prints unsafe text from runs, profiles, data or arguments."""

from __future__ import annotations

import io
import json
import sys
import tomllib
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from dpo_cli import app
from dpo_cli.run.events import to_json
from tests.commands.conftest import Cli
from tests.support import story
from tests.support.unsafe import EVIL, unsafe_characters

FILE_NAME = EVIL.replace("\x00", "").replace("\ud800", "")  # as far as a file system allows


def evil(value: Any, key: str = "") -> Any:
    """Return the JSON value with unsafe text in each free-text string."""
    if isinstance(value, dict):
        return {name: evil(each, name) for name, each in value.items()}
    if isinstance(value, list):
        return [evil(each, key) for each in value]
    free = isinstance(value, str) and key not in ("event", "code", "reason", "checkpoint")
    return f"{value}{EVIL}" if free else value


@pytest.fixture
def run(root: Path) -> str:
    """Make a run whose name and events contain unsafe text."""
    failed = story.at(170, story.FAILED)
    events = [*story.preparation(), *story.training(0, 200), story.at(165, story.SLOW), failed]
    made = story.write(root, "evil", *events)
    lines = [json.dumps(evil(json.loads(to_json(event)))) + "\n" for event in events]
    made.events_path.write_text("".join(lines), encoding="utf-8")
    (made.path / "profile.toml").write_text("\x1b[31m\u202e = ]", encoding="utf-8")
    (root / FILE_NAME).symlink_to(made.path.absolute())
    moved = made.path.rename(made.path.with_name(f"{FILE_NAME}-2"))
    (root / FILE_NAME).unlink()
    return moved.name


def assert_safe(*texts: str) -> None:
    for text in texts:
        assert not unsafe_characters(text), text
        assert "Traceback" not in text, text
        assert "bug in dpo" not in text, text


@pytest.mark.parametrize(
    "words",
    [
        ["runs"],
        ["runs", "--json"],
        ["show"],
        ["show", "--samples"],
        ["watch"],
        ["compare"],
        ["compare", "--json"],
        ["clean", "--dry-run"],
        ["clean", "--dry-run", "--json"],
        ["stop"],
        ["resume"],
        ["export"],
        ["eval"],
        ["chat", "--prompt", "x"],
    ],
    ids=" ".join,
)
def test_a_hostile_run_prints_nothing_unsafe(dpo: Cli, run: str, words: list[str]) -> None:
    command, *options = words
    names = [] if command in ("runs", "clean") else [run]
    if command == "compare":
        names.append(story.write(Path("runs"), "other", *story.whole()).name)
    _, out, err = dpo(command, *names, *options)
    assert out or err
    assert_safe(out, err)
    if "--json" in options:
        assert json.loads(out)


def test_a_hostile_run_as_files(dpo: Cli, run: str, tmp_path: Path) -> None:
    for command, name in (("report", "a.html"), ("plot", "a.svg"), ("show", "b.svg")):
        option = "--svg" if command == "show" else "--out"
        code, out, err = dpo(command, run, option, name)
        assert code == 0, err
        text = (tmp_path / name).read_text(encoding="utf-8")
        assert_safe(out, err, text)
        if name.endswith(".svg"):
            ElementTree.fromstring(text)


@pytest.mark.parametrize(
    "words",
    [
        ["train", FILE_NAME],
        ["train", "mine.toml", "--set", f"model.{FILE_NAME}=1"],
        ["train", "mine.toml", "--set", f"data.data_path='{FILE_NAME}'"],
        ["train", "odd.toml"],
        ["config", "show", "odd.toml"],
        ["train", "mine.toml", "--runs-dir", FILE_NAME, "--set", "data.max_seq_len=-1"],
        [f"--{FILE_NAME}"],
        ["train", "mine.toml", f"--{FILE_NAME}", "1"],
        ["train", "mine.toml", "--resume-from", FILE_NAME],
        [FILE_NAME],
        ["show", "mine.toml", "--at", FILE_NAME],
        ["init", f"{FILE_NAME}/x"],
        ["data", FILE_NAME],
        ["import", FILE_NAME, "--out", FILE_NAME],
        ["export", FILE_NAME],
        ["merge", FILE_NAME, FILE_NAME, "--out", FILE_NAME],
        ["compare", FILE_NAME],
        ["sweep", FILE_NAME],
        ["chat", FILE_NAME, "--prompt", FILE_NAME],
        ["runs", "--runs-dir", FILE_NAME],
    ],
)
def test_hostile_arguments_print_nothing_unsafe(
    dpo: Cli, directory: Path, words: list[str]
) -> None:
    (directory / "odd.toml").write_text('extends = "mine.toml"\n"\u202e\x9b\\u001b[31m" = 1\n')
    code, out, err = dpo(*words)
    assert code == (0 if words[0] == "runs" else 2)
    assert out or err
    assert_safe(out, err)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_without_unicode(
    root: Path, monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    story.write(root, "失败", *story.whole(), story.at(607, story.CHINESE))
    story.write(root, "other", *story.whole())
    for words in ("runs", "runs --json", "show 失败", "compare 失败 other", "clean", "--help", "x"):
        raw = io.BytesIO()
        for name in ("stdout", "stderr"):
            monkeypatch.setattr(sys, name, io.TextIOWrapper(raw, encoding, write_through=True))
        assert app.main(words.split()) == (2 if words == "x" else 0)
        shown = raw.getvalue().decode(encoding)
        assert_safe(shown)
        if words == "runs --json":
            assert {run["name"][:2] for run in json.loads(shown)} == {"失败", "ot"}
        if words == "show 失败":
            assert "????" in shown
            assert "+-" in shown


def test_a_profile_is_shown_with_escapes(dpo: Cli, directory: Path) -> None:
    value = "run \u202e\x9b\x7f"
    path = directory / "own.toml"
    path.write_text(f'extends = "mine.toml"\n[run]\nname = {json.dumps(value)}\n')
    code, out, _ = dpo("config", "show", "own.toml")
    if code == 0:
        assert tomllib.loads(out)["run"]["name"] == value
    assert_safe(out)
