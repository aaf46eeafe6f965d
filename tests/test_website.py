"""The documentation site: its navigation, the pages made from the code, and its links."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import yaml

from dpo_cli.findings import PairIssue
from dpo_cli.profile.schema import KEYS
from tests.support.cli import REPOSITORY
from tests.support.command_tree import command_tree
from website import reference

CONFIGURATIONS = {"en": "website/mkdocs.yml", "zh": "website/mkdocs.zh-CN.yml"}
DOCS = REPOSITORY / "docs"


def navigation(language: str) -> list[list[str]]:
    """The pages of each section."""
    text = (REPOSITORY / CONFIGURATIONS[language]).read_text(encoding="utf-8")
    contents = [content for row in yaml.safe_load(text)["nav"] for content in row.values()]
    rows = [[{"": content}] if isinstance(content, str) else content for content in contents]
    return [[page for row in section for page in row.values()] for section in rows]


def test_the_navigation_has_every_page() -> None:
    pages = [page for section in navigation("en") for page in section]
    assert len(pages) == len(set(pages))
    of_docs = {path.name for path in DOCS.glob("*.md")}
    generated = {f"reference/{name}" for name in reference.pages("en")} | {"index.md"}
    assert of_docs | generated <= set(pages)
    for page in set(pages) - of_docs - generated:
        assert (REPOSITORY / page).is_file(), page


def test_both_languages_have_the_same_navigation() -> None:
    assert navigation("zh") == navigation("en")


@pytest.fixture(params=["en", "zh"])
def generated(request: pytest.FixtureRequest) -> dict[str, str]:
    return reference.pages(request.param)


def headings(page: str) -> list[str]:
    return re.findall(r"^#{2,3} `(.+)`$", page, re.MULTILINE)


def commands(tree: Any, path: str = "dpo") -> dict[str, Any]:
    found = {}
    for name, command in tree.commands.items():
        found[f"{path} {name}"] = command
        if hasattr(command, "commands"):
            found |= commands(command, f"{path} {name}")
    return found


def test_every_command_and_option_is_described(generated: dict[str, str]) -> None:
    page = generated["commands.md"]
    tree = commands(command_tree())
    assert headings(page) == list(tree)
    sections = dict(zip(tree, re.split(r"^#{2,3} .*$", page, flags=re.MULTILINE)[1:], strict=True))
    for name, command in tree.items():
        assert command.help in sections[name]
        for parameter in command.params:
            assert (parameter.help or "") in sections[name]
            for option in (*parameter.opts, *parameter.secondary_opts):
                if option.startswith("-"):
                    assert re.search(rf"`{option}[ `]", sections[name]), f"{name} {option}"


def test_every_key_is_described(generated: dict[str, str]) -> None:
    page = generated["keys.md"]
    assert [name for name in headings(page) if not name.startswith("[")] == list(KEYS)
    texts = re.split(r"^### .*$", page, flags=re.MULTILINE)[1:]
    for key, text in zip(KEYS.values(), texts, strict=True):
        words = re.sub(r"\]\(#\w+\)|[\\`\[\]]", "", text)
        assert re.sub(r"[\\`\[\]]", "", key.description) in words, key.name


def test_types_have_their_limits() -> None:
    page = reference.pages("en")["keys.md"]
    facts = dict(re.findall(r"^### `(.+)`\n\n(.+)\n", page, re.MULTILINE))
    assert facts["train.learning_rate"] == (
        "number, above 0 · default `1e-8` · a change at a resume needs `--allow-changes`"
    )
    assert facts["lora.rank"] == (
        "whole number, at least 1 · unset, for example `16` · fixed for the run"
    )
    assert facts["dpo.reduction"].startswith('`"mean"`, `"sum"` · default `"mean"`')
    assert '`"orpo"`, or a list of these · ' in facts["dpo.loss"]
    assert facts["data.data_path"].startswith("text, or a list of these · required")


def test_every_pair_issue_is_described(generated: dict[str, str]) -> None:
    rows = re.findall(r"^\| `([\w-]+)` \| (.+) \|$", generated["pair-issues.md"], re.MULTILINE)
    assert [name for name, _ in rows] == [issue.value for issue in PairIssue]
    assert all(text.endswith(".") for _, text in rows)


class Targets(HTMLParser):
    """The anchors of a page, and what it links to or loads."""

    def __init__(self) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        elif tag == "link" and values.get("rel") in ("stylesheet", "icon", "alternate"):
            self.loaded.append(values["href"])
        elif "src" in values:
            self.loaded.append(values["src"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both sites, built as `make docs` builds them: a warning is an error."""
    pytest.importorskip("mkdocs", reason="needs mkdocs: pip install '.[docs]'")
    pytest.importorskip("material", reason="needs mkdocs-material: pip install '.[docs]'")
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    folder = tmp_path_factory.mktemp("site")
    for language, name in CONFIGURATIONS.items():
        target = folder if language == "en" else folder / "zh-CN"
        config = load_config(str(REPOSITORY / name), site_dir=str(target))
        assert config.strict
        build(config)
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Targets]:
    found = {}
    for path in site.rglob("*.html"):
        found[path] = Targets()
        found[path].feed(path.read_text(encoding="utf-8"))
    return found


def test_no_link_of_the_site_is_broken(site: Path, pages: dict[Path, Targets]) -> None:
    for path, page in pages.items():
        if path.name == "404.html":  # served at any address, so its links begin at the host's root
            continue
        for link in [*page.links, *page.loaded]:
            name, _, anchor = unquote(link).partition("#")
            if name.startswith(("http:", "https:", "mailto:")):
                continue
            target = (path.parent / name).resolve() if name else path
            if target.is_dir():
                target /= "index.html"
            assert target.is_relative_to(site), f"{path.name} links to {link}"
            assert target.is_file(), f"{path.name} links to {link}"
            if anchor and target.suffix == ".html":
                assert anchor in pages[target].anchors, f"{path.name} links to {link}"


def test_pages_load_nothing_from_other_hosts(pages: dict[Path, Targets]) -> None:
    loaded = [link for page in pages.values() for link in page.loaded]
    assert loaded
    assert not [link for link in loaded if link.startswith(("http", "//"))]


def test_each_page_leads_to_the_other_language(site: Path, pages: dict[Path, Targets]) -> None:
    for path in pages:
        if path.is_relative_to(site / "zh-CN") or path.name == "404.html":
            continue
        chinese = site / "zh-CN" / path.relative_to(site)
        assert chinese in pages
        for here, there in ((path, chinese), (chinese, path)):
            led = {(here.parent / link.partition("#")[0]).resolve() for link in pages[here].links}
            assert there in led, here


def test_chinese_pages_are_chinese(site: Path) -> None:
    for page in (DOCS / "zh-CN").glob("*.md"):
        title = page.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")
        text = (site / "zh-CN" / f"{page.stem}.html").read_text(encoding="utf-8")
        assert '<html lang="zh"' in text
        assert re.sub(r"`", "", title) in re.sub(r"</?code>", "", text), page.name
