"""Tests of `dpo config show` and `dpo schema`."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

from dpo_cli.profile.json_schema import json_schema
from dpo_cli.profile.load import load_profile
from dpo_cli.profile.resolved import to_toml
from tests.commands.conftest import Cli


@pytest.fixture(autouse=True)
def beside_a_profile(root: Path, tmp_path: Path) -> None:
    (tmp_path / "my.toml").write_text('extends = "dense"\n\n[train]\nepochs = 3\n')


def test_the_resolved_profile_is_shown(dpo: Cli, tmp_path: Path) -> None:
    code, out, err = dpo("config", "show", "my.toml", "--set", "dpo.beta=0.5")
    assert (code, err) == (0, "")
    assert out == to_toml(load_profile(Path("my.toml"), ["dpo.beta=0.5"]).profile)
    (tmp_path / "again.toml").write_text(out)
    assert dpo("config", "show", "again.toml")[1] == out


def test_each_value_says_where_it_comes_from(dpo: Cli) -> None:
    plain = dpo("config", "show", "my.toml", "--set", "dpo.beta=0.5")[1]
    code, out, _ = dpo("config", "show", "my.toml", "--set", "dpo.beta=0.5", "--origins")
    assert code == 0
    assert tomllib.loads(out) == tomllib.loads(plain)
    origins = dict(line.split("  # ") for line in out.splitlines() if "  # " in line)
    origins = {statement.strip(): origin for statement, origin in origins.items()}
    assert origins["epochs = 3"] == "my.toml:4"
    assert origins["beta = 0.5"] == "--set"
    assert origins["dropout = 0.0"] == "default"
    assert "profiles/dense.toml:" in origins["batch_size = 4"]
    assert len({line.index("  # ") for line in out.splitlines() if "  # " in line}) == 1


def test_columns_say_where_they_come_from(dpo: Cli) -> None:
    columns = 'data.columns={prompt="question",chosen="good"}'
    code, out, err = dpo("config", "show", "my.toml", "--set", columns, "--origins")
    assert (code, err) == (0, "")
    places = [line.partition("  # ")[2] for line in out.splitlines() if '"question"' in line]
    assert places == ["--set"]


def test_a_wrong_profile_exits_2(dpo: Cli) -> None:
    code, out, err = dpo("config", "show", "my.toml", "--set", "train.epoch=1")
    assert (code, out) == (2, "")
    assert "did you mean train.epochs?" in err


def test_the_schema_is_printed_or_written(dpo: Cli) -> None:
    assert json.loads(dpo("schema")[1]) == json_schema()
    code, out, _ = dpo("schema", "--out", "new/dpo.schema.json")
    assert (code, out) == (0, "wrote new/dpo.schema.json\n")
    assert json.loads(Path("new/dpo.schema.json").read_text()) == json_schema()
