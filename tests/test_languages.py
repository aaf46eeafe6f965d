"""The Chinese pages are in step with the English ones."""

from __future__ import annotations

import re
from collections import Counter
from itertools import zip_longest
from pathlib import Path

import pytest

from tests.support.cli import REPOSITORY
from tests.support.documented import code_lines, code_spans, headings, links, sections, shell_lines

DOCS = REPOSITORY / "docs"
CHINESE = [REPOSITORY / "README.zh-CN.md", *sorted((DOCS / "zh-CN").glob("*.md"))]
NETWORK = (
    ("between the processes of one run", "同一次训练的各个进程之间"),
    (
        "to the Hub for a model or data set named `hf:ORG/NAME`",
        "为名为 `hf:ORG/NAME` 的模型或数据集访问 Hub",
    ),
    ("to a tracker that the profile asks for", "配置所要求的跟踪工具"),
)


def english_page(page: Path) -> Path:
    if page.parent == REPOSITORY:
        return REPOSITORY / "README.md"
    return DOCS / page.name


def pages(page: Path) -> tuple[str, str]:
    return english_page(page).read_text(encoding="utf-8"), page.read_text(encoding="utf-8")


@pytest.fixture(params=CHINESE, ids=lambda page: str(page.relative_to(REPOSITORY)))
def page(request: pytest.FixtureRequest) -> Path:
    path: Path = request.param
    return path


def numbers(text: str) -> Counter[str]:
    return Counter(re.findall(r"\d+(?:[.,]\d+)*", text))


def rows(text: str) -> list[str]:
    """Rows of the tables of a text."""
    return re.findall(r"^\|.*$", text, re.MULTILINE)


def meant(page: Path) -> list[tuple[str, int | None]]:
    """English target and number of the heading of each link, but those between the languages."""
    translated = {english_page(each) for each in CHINESE}
    found: list[tuple[str, int | None]] = []
    for target, anchor in links(page):
        if target.startswith(("http://", "https://", "mailto:")):
            found.append((f"{target}#{anchor}", None))
            continue
        path = (page.parent / target).resolve() if target else page
        is_chinese = path.parent == DOCS / "zh-CN" or path == CHINESE[0]
        original = english_page(path) if is_chinese else path
        if path != page and original == (english_page(page) if page in CHINESE else page):
            continue
        if page in CHINESE:
            assert path not in translated, (
                f"{page.name} links to {target} instead of its translation"
            )
        found.append((str(original), headings(path).index(anchor) if anchor else None))
    return found


def test_every_page_has_a_chinese_page() -> None:
    english = {path.name for path in DOCS.glob("*.md")}
    chinese = {path.name for path in (DOCS / "zh-CN").glob("*.md")}
    assert sorted(english - chinese) == []
    assert sorted(chinese - english) == []


def test_each_page_leads_to_the_other(page: Path) -> None:
    for start, end, word in (
        (page, english_page(page), "English"),
        (english_page(page), page, "中文"),
    ):
        [target] = re.findall(
            rf"^\[{word}(?:说明)?\]\((.+)\)$", start.read_text("utf-8"), re.MULTILINE
        )
        assert (start.parent / target).resolve() == end.resolve()


def test_the_same_sections_of_the_same_levels(page: Path) -> None:
    english, chinese = map(sections, pages(page))
    assert [level for level, _ in chinese] == [level for level, _ in english]


def test_the_same_commands(page: Path) -> None:
    assert shell_lines(page) == shell_lines(english_page(page))


def test_the_same_code_but_for_chinese_words_and_comments(page: Path) -> None:
    """A line that is translated begins as the English line does."""
    for english, chinese in zip_longest(code_lines(english_page(page)), code_lines(page)):
        assert english is not None, chinese
        assert chinese is not None, english
        if english != chinese:
            start, *rest = re.split(r"(?=[\u3000-\u9fff\uff00-\uffef])", chinese, maxsplit=1)
            assert rest, (english, chinese)
            assert english.startswith(start.rstrip()), (english, chinese)


def test_the_same_links_in_the_same_number(page: Path) -> None:
    assert Counter(meant(page)) == Counter(meant(english_page(page)))


def test_the_same_numbers_in_each_row_and_section(page: Path) -> None:
    for (_, english), (_, chinese) in zip(*map(sections, pages(page)), strict=True):
        for english_row, chinese_row in zip(rows(english), rows(chinese), strict=True):
            assert numbers(english_row) == numbers(chinese_row), (english_row, chinese_row)
        assert numbers(english) == numbers(chinese), english[:80]


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
