"""Tests of docs/migrating.md: each row of its tables is true, and each rule has a row."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from dpo_cli.profile.foreign.adapters import ADAPTERS
from dpo_cli.profile.foreign.common import OBJECTIVE, TRAINING
from dpo_cli.profile.foreign.tools import TOOLS
from dpo_cli.profile.unknown_keys import UNSUPPORTED
from tests.support.cli import REPOSITORY
from tests.support.foreign import translated

PAGE = (REPOSITORY / "docs/migrating.md").read_text(encoding="utf-8")
SHARED = {
    "Arguments of transformers": TRAINING,
    "Loss": OBJECTIVE,
    "Adapters": ADAPTERS,
}
SECTIONS = {tool.title: tool.name for tool in TOOLS.values()}
AS_HERE = "as every run does"


def rows(section: str) -> list[tuple[list[str], str]]:
    """Return settings and result of each row of a section's table."""
    text = PAGE.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    found = re.findall(r"^\| (`.+) \| (.+) \|$", text, re.MULTILINE)
    return [(re.findall(r"`([^`]+)`", left), right) for left, right in found]


CASES = [
    *(("trl", settings, result) for section in SHARED for settings, result in rows(section)),
    *(
        (tool, settings, result)
        for section, tool in SECTIONS.items()
        for settings, result in rows(section)
    ),
]


def flat_yaml(settings: list[str]) -> dict[str, Any]:
    return {name: value for each in settings for name, value in yaml.safe_load(each).items()}


@pytest.mark.parametrize(("tool", "settings", "result"), CASES, ids=lambda each: str(each)[:40])
def test_a_row_is_what_happens(
    tool: str, settings: list[str], result: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    name = settings[0].split(":")[0]
    translation = translated(tool, flat_yaml(settings))
    stated = re.findall(r"`([a-z]+\.[a-z0-9_]+ = [^`]+)`", result)
    for statement in stated:
        key, value = statement.split(" = ", 1)
        assert translation.values[key] == tomllib.loads(f"value = {value}")["value"], key
        assert "default" not in translation.origins[key]
    reported = [entry for entry in translation.missing if entry.startswith(f"{name} = ")]
    if stated:
        assert not reported
    elif result == AS_HERE:
        assert not reported
        assert not translation.unknown
    else:
        assert reported == [f"{reported[0].partition(': ')[0]}: {result}"]


@pytest.mark.parametrize("tool", list(TOOLS))
def test_every_rule_has_a_row(tool: str) -> None:
    def names(section: str) -> set[str]:
        return {settings[0].split(":")[0] for settings, _ in rows(section)}

    rules = TOOLS[tool].rules
    shared = {name for table in SHARED.values() for name in table if rules.get(name) is table[name]}
    by_trl = {name for name in rules if rules[name] is TOOLS["trl"].rules.get(name)}
    has_rows = names(TOOLS[tool].title) | (by_trl & names("TRL")) | shared
    assert rules.keys() <= has_rows
    for section, table in SHARED.items():
        assert names(section) == table.keys()


def test_unsupported_names_are_in_the_table() -> None:
    listed = re.search(r"^Not supported: (.*)", PAGE, re.MULTILINE)
    assert listed
    assert set(re.findall(r"`(\w+)`", listed[1])) <= UNSUPPORTED.keys()


def test_every_tool_is_listed() -> None:
    for tool in TOOLS.values():
        assert re.search(rf"^\| {re.escape(tool.title)} \| `{tool.name}` \|", PAGE, re.MULTILINE)
