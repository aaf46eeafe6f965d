"""Hooks of mkdocs: one page for each page of docs/, in the language of the site.

Pages keep their name in both languages. Files of the repository outside docs/ that a page links to
become pages or files of the site, so that no link leads out of it.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.structure.files import File, Files

from website import reference

REPOSITORY = Path(__file__).resolve().parents[1]
_CHINESE = PurePosixPath("docs/zh-CN")
_HOME = {"README.md", "README.zh-CN.md"}
_LINK = re.compile(r"\]\((?!https?://|mailto:|#)([^)#\s]+)(#[^)\s]*)?\)")
_OTHER_LANGUAGE = re.compile(r"^\[(?:中文|中文说明|English)\]\([^)]*\)\n+", re.MULTILINE)
"""Line that leads to the page in the other language, for which the site has a menu."""
_FENCED = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)

_LONG_NAME = re.compile(r"(?<=<code>)[^<>\s]{25,}(?=</code>)")


def on_config(config: Any) -> None:
    """Give headings the anchors that they have on GitHub."""
    config.mdx_configs["toc"]["slugify"] = slug


def slug(heading: str, separator: str = "-") -> str:
    """Return the anchor of a heading as GitHub forms it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", separator)


def on_files(files: Files, *, config: Any) -> Files:
    """Choose the pages of this language, and add what they link to and the reference."""
    language = config.theme["language"]
    for file in list(files):
        if file.src_uri.startswith("zh-CN/"):
            files.remove(file)
    pages = ["README.md", *(f"docs/{file.src_uri}" for file in files.documentation_pages())]
    while pages:
        path = in_language(pages.pop(), language)
        _put(files, path, config)
        if path.endswith(".md"):
            text = (REPOSITORY / path).read_text(encoding="utf-8")
            linked = [
                _target(path, match[1]) for match in _LINK.finditer(_OTHER_LANGUAGE.sub("", text))
            ]
            pages += [each for each in linked if files.get_file_from_path(site_path(each)) is None]
    for name, content in reference.pages(language).items():
        files.append(File.generated(config, f"reference/{name}", content=content))
    return files


def _put(files: Files, path: str, config: Any) -> None:
    """Make a file of the repository the site's file of that name."""
    uri, source = site_path(path), str(REPOSITORY / path)
    present = files.get_file_from_path(uri)
    if present is None or present.abs_src_path != source:
        if present is not None:
            files.remove(present)
        files.append(File.generated(config, uri, abs_src_path=source))


def site_path(path: str) -> str:
    """Return the name in the site of a file of the repository; the same in both languages."""
    if path in _HOME:
        return "index.md"
    pure = PurePosixPath(path)
    for folder in (_CHINESE, PurePosixPath("docs")):
        if pure.is_relative_to(folder):
            return str(pure.relative_to(folder))
    return path


def in_language(path: str, language: str) -> str:
    """Return the page of the repository that shows `path` in a language, or else in English."""
    name = site_path(path)
    if language == "zh":
        chinese = "README.zh-CN.md" if name == "index.md" else str(_CHINESE / name)
        if (REPOSITORY / chinese).is_file():
            return chinese
    if path in _HOME:
        return "README.md"
    return f"docs/{name}" if PurePosixPath(path).is_relative_to(_CHINESE) else path


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Files) -> str:
    """Turn links between files of the repository into links between pages of the site."""
    if not page.file.abs_src_path:  # made by reference.py
        return markdown
    here = PurePosixPath(page.file.abs_src_path).relative_to(REPOSITORY.as_posix()).as_posix()
    folder = posixpath.dirname(page.file.src_uri)

    def moved(match: re.Match[str]) -> str:
        target, anchor = _target(here, match[1]), match[2] or ""
        shown = in_language(target, config.theme["language"])
        if anchor and shown != target:
            anchor = "#" + _same_heading(anchor[1:], target, shown)
        return f"]({posixpath.relpath(site_path(target), folder or '.')}{anchor})"

    parts = _FENCED.split(_OTHER_LANGUAGE.sub("", markdown))
    return "".join(part if part.startswith("```") else _LINK.sub(moved, part) for part in parts)


def _target(page: str, link: str) -> str:
    return posixpath.normpath(posixpath.join(posixpath.dirname(page), link))


def _same_heading(anchor: str, page: str, translation: str) -> str:
    """Return the anchor of the same section of a translation, which has the same sections."""
    here, there = (anchors(REPOSITORY / each) for each in (page, translation))
    return there[here.index(anchor)] if anchor in here and len(here) == len(there) else anchor


def anchors(page: Path) -> list[str]:
    """Return the anchors of the headings of a page, in order."""
    text = _FENCED.sub("", page.read_text(encoding="utf-8"))
    return [slug(heading) for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE)]


def on_page_content(html: str, **_: Any) -> str:
    """Let long names break at their punctuation, so that tables keep room for texts."""
    return _LONG_NAME.sub(lambda match: re.sub(r"(?<=[_/.])|(?<=::)", "<wbr>", match[0]), html)


def on_page_context(context: Any, *, page: Any, config: Any, nav: Any) -> None:
    """Let the menu of languages lead to this page in the other language."""
    english, chinese = page.url, f"zh-CN/{page.url}"
    if config.theme["language"] == "zh":
        # mkdocs makes this link relative to the page without its leading ../, which it puts back in
        # front afterwards; so the link must name the page as from the page's own folder.
        folder = posixpath.dirname(page.url)
        up = "../" * (page.url.count("/") + 1)
        english, chinese = up + posixpath.join(folder, page.url), page.url
    config.extra["alternate"] = [
        {"name": "English", "link": english, "lang": "en"},
        {"name": "中文", "link": chinese, "lang": "zh"},
    ]
