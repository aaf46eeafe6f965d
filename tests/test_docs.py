"""The pages name only files, tests and links that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dpo_cli.profile.losses import LOSSES
from tests.support.cli import REPOSITORY

PAGES = sorted(
    [*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").rglob("*.md"), REPOSITORY / "demo/README.md"]
)
TESTS = {
    path: path.read_text(encoding="utf-8") for path in (REPOSITORY / "tests").rglob("test_*.py")
}
ALL_TESTS = "\n".join(TESTS.values())


def page_id(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        if not target.startswith(("http://", "https://", "mailto:")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_anchors_are_headings(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target, anchor in re.findall(r"\]\(([^)#\s]*)#([^)]+)\)", text):
        if target.startswith("http"):
            continue
        other = (page.parent / target).read_text(encoding="utf-8") if target else text
        headings = re.findall(r"^#+ (.+)$", other, re.MULTILINE)
        anchors = {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}
        assert anchor in anchors, f"{page.name} links to {target}#{anchor}"


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_named_tests_and_files_exist(page: Path) -> None:
    if page.name == "CHANGELOG.md":  # lists old names beside the new ones
        return
    for quoted in re.findall(r"`([^`\n]+)`", page.read_text(encoding="utf-8")):
        if match := re.fullmatch(r"(?:[\w/]+\.py::)?(test_\w+)", quoted):
            assert f"def {match.group(1)}(" in ALL_TESTS, f"{page.name} names {quoted}"
        if re.fullmatch(r"(tests|dpo_cli|benchmarks|examples|demo|profiles)/[\w/]+\.\w+", quoted):
            assert (REPOSITORY / quoted).exists(), f"{page.name} names {quoted}"
        if re.fullmatch(r"[a-z_]+/[a-z_]+\.py", quoted) and not quoted.startswith(
            ("tests/", "benchm")
        ):
            here = [REPOSITORY / "dpo_cli" / quoted, REPOSITORY / quoted]
            assert any(path.exists() for path in here), f"{page.name} names {quoted}"


def test_every_loss_has_a_row() -> None:
    text = (REPOSITORY / "docs/losses.md").read_text(encoding="utf-8")
    rows = set(re.findall(r"^\| `(\w+)`", text, re.MULTILINE))
    assert set(LOSSES) <= rows


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        named = re.findall(r"`make ([a-z-]+)`", page.read_text(encoding="utf-8"))
        assert set(named) <= targets, page.name
