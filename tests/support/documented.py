"""Command lines in the shell blocks of the pages."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from tests.support.cli import REPOSITORY

PAGES = sorted(
    [*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").rglob("*.md"), REPOSITORY / "demo/README.md"]
)
_BLOCK = re.compile(
    r"^```(?:sh|bash|shell|console)?\n(.*?)^```$|((?:^ {4}.*\n)+)", re.MULTILINE | re.DOTALL
)
_VARIABLES = re.compile(r"^(?:[A-Z_]+=\S+ )+")
_PROGRAMS = ("dpo", "make", "pip", "python", "torchrun", "srun")
_ENDS = frozenset(("|", ">", ">>", "&&", ";", "2>", "&"))


def shell_lines(page: Path) -> list[str]:
    """Return the command lines in the shell blocks of a page, without comments and variables."""
    blocks = [match[1] or match[2] for match in _BLOCK.finditer(page.read_text(encoding="utf-8"))]
    lines = [line.strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    lines = [_VARIABLES.sub("", line) for line in lines]
    return [re.sub(r"\s{2,}#.*$", "", line) for line in lines if line.split(" ")[0] in _PROGRAMS]


def code_lines(page: Path) -> list[str]:
    """The lines of all blocks of code of a page, fenced or indented, without comments."""
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"^```.*?\n(.*?)^```$|^((?: {4}[^\n]*\n)+)", text, re.MULTILINE | re.DOTALL)
    lines = "".join(fenced or indented for fenced, indented in blocks).splitlines()
    return [line for line in (re.sub(r"(^|\s+)#\s.*$", "", each) for each in lines) if line]


def headings(page: Path) -> list[str]:
    """The anchors of the headings of a page, as GitHub makes them, in order."""
    titles = re.findall(r"^#+ (.+)$", _without_blocks(page.read_text("utf-8")), re.MULTILINE)
    return [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles]


def links(page: Path) -> list[tuple[str, str]]:
    """Target and anchor of each link and picture of a page, either of which may be empty."""
    return re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]+))?\)", page.read_text("utf-8"))


def dpo_words(line: str) -> Iterator[list[str]]:
    """Return the words of each `dpo` in a command line."""
    words = shlex.split(line, comments=True)
    while words:
        end = next((n for n, word in enumerate(words) if word in _ENDS), len(words))
        command, words = words[:end], words[end + 1 :]
        if command[:1] == ["dpo"]:
            yield command[1:]


def code_spans(text: str) -> list[str]:
    """Return the code spans of a text outside of its code blocks, in order."""
    return re.findall(r"`([^`\n]+)`", _without_blocks(text))


def sections(text: str) -> list[tuple[str, str]]:
    """Return level and text of each section of a page, first the text before the first heading."""
    parts = re.split(r"^(#+) .*$", _without_blocks(text), flags=re.MULTILINE)
    return [("", parts[0]), *zip(parts[1::2], parts[2::2], strict=True)]


def _without_blocks(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
