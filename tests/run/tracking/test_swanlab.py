"""Tests of an offline directory of SwanLab, if that extra is installed (`dev` does not)."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dpo_cli.run.directory import RunDirectory
from dpo_cli.run.tracking.state import read_state
from dpo_cli.run.tracking.swanlab import SwanLab
from tests.support.made_events import saved
from tests.support.tracking_streams import (
    PLANNED,
    SECRET,
    evaluated,
    feed_to,
    private_words,
    resumed,
    sampled,
    step,
    steps,
    tell,
)

pytest.importorskip("swanlab", reason="needs the extra swanlab")


@pytest.fixture(autouse=True)
def no_login(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SWANLAB_API_KEY", "SWANLAB_MODE", "SWANLAB_API_HOST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)


def feed(run: RunDirectory, **track: bool) -> dict[str, Any]:
    feed_to("swanlab", SwanLab, run, **track)
    state = read_state(run)["swanlab"]
    assert "failed" not in state
    return state


def test_an_offline_directory_is_kept_and_named(run: RunDirectory, tmp_path: Path) -> None:
    tell(run, PLANNED, evaluated(0), *steps([1, 2]), step(3, loss=float("nan")), saved(3))
    state = feed(run)
    program, verb, folder = shlex.split(state["upload"])
    assert (program, verb) == ("swanlab", "sync")
    (file,) = (tmp_path / folder).glob("*.swanlab")
    content = file.read_bytes()
    for name in ("train/loss", "train/rewards/margins", "eval/logps/chosen", "MiniMind-DPO"):
        assert name.encode() in content
    assert run.name.encode() in content


def test_a_resumed_run_is_one_directory_of_the_same_run(run: RunDirectory) -> None:
    tell(run, PLANNED, *steps([1, 2, 3]))
    before = feed(run)
    tell(run, PLANNED, resumed(1), *steps([2, 3, 4]), saved(4))
    after = feed(run)
    assert after["id"] == before["id"]
    (folder,) = (run.path / "swanlab").glob("run-*")
    assert str(folder.name) in after["upload"]


def test_nothing_private_is_in_what_would_be_uploaded(run: RunDirectory) -> None:
    tell(run, PLANNED, evaluated(0), sampled(0), *steps([1, 2]), saved(2))
    feed(run)
    for file in _files(run):
        content = file.read_bytes()
        if (
            file.suffix == ".swanlab"
        ):  # SwanLab chooses the names of its files, and uploads only the names
            content = content.replace(str(file.parent).encode(), b"")
        for private in private_words(run.path.parent):
            assert private not in content, (file, private)


def test_samples_are_texts_where_the_profile_says_so(run: RunDirectory) -> None:
    tell(run, PLANNED, evaluated(0), sampled(0), saved(0))
    feed(run, send_text=True)
    assert any(SECRET.encode() in file.read_bytes() for file in _files(run))


def _files(run: RunDirectory) -> Iterator[Path]:
    return (path for path in (run.path / "swanlab").rglob("*") if path.is_file())
