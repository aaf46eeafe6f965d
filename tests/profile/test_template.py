"""Tests of the text of a new profile: descriptions, values and notes."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest
import tomli_w

from dpo_cli.profile.json_schema import json_schema
from dpo_cli.profile.load import load_profile
from dpo_cli.profile.recipe import Draft, Inputs, copy_profile, learning_recipe, minimind_recipe
from dpo_cli.profile.resolved import to_toml
from dpo_cli.profile.schema import KEYS, TABLES
from dpo_cli.profile.template import SCHEMA_NAME, render, render_short, schema_text

INPUTS = Inputs(Path("out/full_sft_512.pth"), Path("mo$del"), None)


def drafts() -> dict[str, Draft]:
    dense, moe = load_profile(Path("dense")), load_profile(Path("minimind3-moe"))
    return {
        "learn": learning_recipe(dense, INPUTS, Path("profiles")),
        "minimind": minimind_recipe(moe, INPUTS, Path("profiles")),
        "copy": copy_profile(load_profile(Path("demo")), Path("profiles")),
    }


@pytest.fixture(params=["learn", "minimind", "copy"])
def draft(request: pytest.FixtureRequest, folder: Path) -> Draft:
    return drafts()[request.param]


@pytest.fixture
def text(draft: Draft) -> str:
    return render(draft, "A title.", load_profile(Path("dense")).profile)


def nested(draft: Draft) -> dict[str, dict[str, object]]:
    tables: dict[str, dict[str, object]] = {}
    for key, value in draft.values.items():
        table, name = key.split(".")
        tables.setdefault(table, {})[name] = value
    return tables


def test_the_text_loads_as_the_draft(draft: Draft, text: str, folder: Path) -> None:
    profiles = folder / "profiles"
    profiles.mkdir()
    (profiles / "meant.toml").write_text(tomli_w.dumps(nested(draft)))
    (profiles / "written.toml").write_text(text)
    written, meant = load_profile(profiles / "written.toml"), load_profile(profiles / "meant.toml")
    assert to_toml(written.profile) == to_toml(meant.profile)


def test_every_key_occurs_once_with_its_description(text: str) -> None:
    flowing = " ".join(line.removeprefix("# ") for line in text.splitlines())
    for key in KEYS.values():
        assert key.description in flowing
    for table in TABLES:
        part = text.partition(f"[{table}]\n")[2].partition("\n[")[0]
        names = re.findall(r"^#?(\w+) =", part, re.MULTILINE)
        assert names == [key.split(".")[1] for key in KEYS if key.startswith(f"{table}.")]


def test_commented_out_keys_are_valid(text: str, folder: Path) -> None:
    """Check each example and default alone, with its # removed."""
    lines = text.splitlines()
    for number, line in enumerate(lines):
        is_example = re.match(r"#\w+ = ", line) and "=  # unset" not in line
        if is_example and "fraction" not in line and "path" not in line:
            changed = [*lines[:number], line[1:], *lines[number + 1 :]]
            (folder / "x.toml").write_text("\n".join(changed))
            load_profile(folder / "x.toml")


def test_values_of_the_minimind_script(folder: Path) -> None:
    text = render(drafts()["learn"], "A title.", load_profile(Path("dense")).profile)
    lines = text.splitlines()
    assert "beta = 0.1  # minimind: 0.1" in lines
    assert 'tokenizer = "../mo$$del"  # minimind: "../model"' in lines
    assert 'data_path = "../dataset/dpo.jsonl"  # minimind: "../dataset/dpo.jsonl"' in lines
    assert "#accumulation_steps = 1  # unset" in lines
    assert '#layout = "packed"' in lines  # no key of the script
    third = render(drafts()["minimind"], "A title.", load_profile(Path("minimind3")).profile)
    assert "beta = 0.15  # minimind: 0.15" in third


def test_no_example_is_of_another_model(text: str) -> None:
    """An example of a shape would be wrong for most models, once its # is removed."""
    part = text.partition("[model]\n")[2].partition("\n[data]")[0]
    unset = [line for line in part.splitlines() if "# unset" in line]
    assert any(line.startswith("#num_key_value_heads =  # unset") for line in unset)
    assert all(re.match(r"#\w+ =  # unset", line) for line in unset)


def test_another_model_shows_no_values_of_the_script(draft: Draft) -> None:
    text = render(draft, "A title.", None)
    comments = [line.partition("#")[2] for line in text.splitlines() if " = " in line]
    assert not any("minimind:" in comment for comment in comments)


def test_the_short_text_loads_as_the_full_one(draft: Draft, text: str, folder: Path) -> None:
    short = render_short(draft, "A title.", "dpo config show profiles/x.toml")
    (folder / "full.toml").write_text(text)
    (folder / "short.toml").write_text(short)
    full, loaded = load_profile(folder / "full.toml"), load_profile(folder / "short.toml")
    assert to_toml(loaded.profile) == to_toml(full.profile)
    assert len(short.splitlines()) < 70
    assert short.count("# FILL IN") == text.count("# FILL IN")
    assert "# All keys with their values: dpo config show profiles/x.toml" in short


def test_an_editor_finds_the_schema(text: str) -> None:
    assert text.splitlines()[0] == f"#:schema {SCHEMA_NAME}"
    assert json.loads(schema_text()) == json_schema()


def test_line_length(text: str) -> None:
    tomllib.loads(text)
    assert max(map(len, text.splitlines())) <= 100


def test_missing_files_are_marked(folder: Path) -> None:
    text = render(drafts()["learn"], "A title.", load_profile(Path("dense")).profile)
    assert text.count("# FILL IN") == 1
    assert text.index("# FILL IN") < text.index("data_path =")
