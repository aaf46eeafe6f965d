"""The Chinese pages are in step with the English ones."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from tests.support.cli import REPOSITORY
from tests.support.documented import code_spans, sections, shell_lines

CHINESE = [REPOSITORY / "README.zh-CN.md", *sorted((REPOSITORY / "docs/zh-CN").glob("*.md"))]
NETWORK = (
    ("between the processes of one run", "同一次训练的各个进程之间"),
    (
        "to the Hub for a model or data set named `hf:ORG/NAME`",
        "为名为 `hf:ORG/NAME` 的模型或数据集访问 Hub",
    ),
    ("to a tracker that the profile asks for", "配置所要求的跟踪工具"),
)


def english(page: Path) -> Path:
    if page.parent == REPOSITORY:
        return REPOSITORY / "README.md"
    return REPOSITORY / "docs" / page.name


def pages(page: Path) -> tuple[str, str]:
    return english(page).read_text(encoding="utf-8"), page.read_text(encoding="utf-8")


@pytest.fixture(params=CHINESE, ids=lambda page: str(page.relative_to(REPOSITORY)))
def page(request: pytest.FixtureRequest) -> Path:
    path: Path = request.param
    return path


def test_the_same_sections_of_the_same_levels(page: Path) -> None:
    english, chinese = map(sections, pages(page))
    assert [level for level, _ in chinese] == [level for level, _ in english]


def test_the_same_commands(page: Path) -> None:
    assert shell_lines(page) == shell_lines(english(page))


def test_the_same_keys_options_and_names_in_each_section(page: Path) -> None:
    for (_, english), (_, chinese) in zip(*map(sections, pages(page)), strict=True):
        found = [Counter(code_spans(text)) for text in (english, chinese)]
        for spans in found:
            del spans["dpo"]  # subjects that the other language may leave out
        assert found[0] == found[1]


def test_the_same_rows_points_and_answers_in_each_section(page: Path) -> None:
    for (_, english), (_, chinese) in zip(*map(sections, pages(page)), strict=True):
        for kind in (r"^\|", r"^- ", r"^\*\*", r"^!\["):
            counts = [len(re.findall(kind, text, re.MULTILINE)) for text in (english, chinese)]
            assert counts[0] == counts[1], (kind, english[:80])


def test_the_same_claims_about_the_network() -> None:
    english, chinese = pages(REPOSITORY / "README.zh-CN.md")
    [claim] = re.findall(
        r"^- `dpo` opens no network connection except (.*)$", english, re.MULTILINE
    )
    [translated] = re.findall(r"^- `dpo` 只在以下情况使用网络：(.*)$", chinese, re.MULTILINE)
    assert len(re.split(r", (?:and )?", claim)) == len(NETWORK)
    assert len(re.split("、(?:以及)?", translated)) == len(NETWORK)
    for english_claim, chinese_claim in NETWORK:
        assert english_claim in claim
        assert chinese_claim in translated
