"""Files around the package: description, versions, citation, issue templates."""

from __future__ import annotations

import re
import tomllib

import pytest
import yaml

import hatch_build
from dpo_cli import __version__
from dpo_cli.extras import install_extra
from tests.support.cli import REPOSITORY

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
TEMPLATES = sorted((REPOSITORY / ".github/ISSUE_TEMPLATE").glob("*.yml"))


def test_one_version() -> None:
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text(encoding="utf-8"))
    assert PROJECT["version"] == str(citation["version"]) == __version__
    assert PROJECT["license"] == citation["license"]


def test_the_description_needs_no_clone() -> None:
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    text = hatch_build.description(readme)
    targets = re.findall(r"\]\(([^)]*)\)", text)
    assert targets
    assert all(target.startswith("https://") for target in targets)
    assert "[" not in re.sub(r"```.*?```|`[^`]*`|\[[^\]]+\]\(https:", "", text, flags=re.DOTALL)
    assert "any Hugging Face causal language model" in text


@pytest.mark.parametrize("extra", sorted(set(PROJECT["optional-dependencies"]) - {"dev"}))
def test_the_remedy_names_the_packages_of_an_extra(extra: str) -> None:
    wanted = [each.partition(";")[0] for each in PROJECT["optional-dependencies"][extra]]
    named = re.findall(r"'([^']+)'", install_extra(extra).replace("backports-", "backports."))
    assert sorted(named) == sorted(wanted)


def test_issues_have_the_versions() -> None:
    contents = {path.stem: yaml.safe_load(path.read_text(encoding="utf-8")) for path in TEMPLATES}
    assert contents.pop("config")["blank_issues_enabled"] is False
    assert contents
    for name, content in contents.items():
        fields = {field.get("id"): field for field in content["body"]}
        versions = fields["versions"]
        assert "dpo --version --verbose" in versions["attributes"]["description"], name
        assert versions["validations"] == {"required": True}, name
