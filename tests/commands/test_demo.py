"""Tests of `dpo demo` from an empty folder, with a few pairs of the demo."""

from __future__ import annotations

from pathlib import Path

import pytest

from dpo_cli.commands import demo
from tests.commands.conftest import Cli
from tests.support.cli import REPOSITORY, Run

SHORT = f"""
extends = "{REPOSITORY}/profiles/demo.toml"
[data]
data_path = "pairs.jsonl"
[train]
epochs = 1
device = "cpu"
[eval]
path = "pairs.jsonl"
"""


def test_it_trains_and_exports(dpo: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, shipped = tmp_path / "empty", tmp_path / "shipped"
    folder.mkdir()
    shipped.mkdir()
    lines = (REPOSITORY / "demo/pairs.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (shipped / "pairs.jsonl").write_text("".join(lines[:32]), encoding="utf-8")
    (shipped / "demo.toml").write_text(SHORT, encoding="utf-8")
    monkeypatch.setattr(demo, "shipped_profiles", lambda: {"demo": shipped / "demo.toml"})
    monkeypatch.chdir(folder)
    monkeypatch.delenv("DPO_RUNS_DIR", raising=False)
    (folder / "demo").write_text("another file of this name")
    code, out, err = dpo("demo", "--plain")
    assert code == 0, err
    run = Run.only(folder)
    assert len(run.steps) == 2
    assert run.directory.is_completed
    assert (run.directory.path / "rlhf_128.pth").is_file()
    assert f"wrote {run.directory.path}/rlhf_128.pth" in out
    for command in ("show", "chat"):
        assert f": dpo {command} {run.directory.name}\n" in out
    assert {path.name for path in folder.iterdir()} == {"demo", "runs"}
