"""HTML elements; all text from outside is escaped here, and nowhere else."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from html import escape
from typing import Any

from dpo_cli.printable import printable


def escape_text(text: str) -> str:
    """Escape a text for HTML and XML, and replace characters that XML does not allow."""
    return escape(printable(text))


class Writer:
    """Builder of HTML elements from texts.

    Args:
        hide: removes private parts of a text; applied to every text before it is escaped.
    """

    def __init__(self, hide: Callable[[str], str]) -> None:
        self._hide = hide

    def text(self, value: object) -> str:
        """Escape a value, so that none of its characters is markup."""
        return escape_text(self._hide(str(value)))

    def tag(self, name: str, value: object, css: str = "") -> str:
        """Return an element that contains only text."""
        return f"<{name}{_class(css)}>{self.text(value)}</{name}>"

    def table(
        self, heads: Sequence[str], rows: Iterable[Sequence[object]], caption: str, css: str = ""
    ) -> str:
        """Return a table that scrolls if it is too wide; the first column is the row header."""
        head = "".join(f'<th scope="col">{self.text(each)}</th>' for each in heads)
        body = "".join(self._row(row) for row in rows)
        return (
            f'<div class="scroll" tabindex="0" role="region" aria-label="{self.text(caption)}">'
            f"<table{_class(css)}><caption>{self.text(caption)}</caption>"
            f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
        )

    def facts(self, facts: Iterable[tuple[str, object]]) -> str:
        """Return a list of names and values."""
        items = (f"<dt>{self.text(k)}</dt><dd>{self.text(v)}</dd>" for k, v in facts)
        return f"<dl>{''.join(items)}</dl>"

    def data(self, name: str, value: Any) -> str:
        """Return a JSON element for the page's script.

        The characters <, > and & are escaped: "</script>" in a run's name would end the element.
        """
        text = json.dumps(value, separators=(",", ":"), allow_nan=False)
        for mark in "<>&":
            text = text.replace(mark, f"\\u{ord(mark):04x}")
        return f'<script type="application/json" id="{name}">{text}</script>'

    def _row(self, row: Sequence[object]) -> str:
        first, *others = row
        cells = "".join(f"<td>{self.text(each)}</td>" for each in others)
        return f'<tr><th scope="row">{self.text(first)}</th>{cells}</tr>'


def section(title: str, *parts: str, css: str = "") -> str:
    """Return a section with a heading; empty if it has no content."""
    body = "".join(parts)
    return f"<section{_class(css)}><h2>{escape_text(title)}</h2>{body}</section>" if body else ""


def details(title: str, body: str) -> str:
    """Return a collapsed block, which is open when printed; empty if it has no content."""
    return f"<details><summary>{escape_text(title)}</summary>{body}</details>" if body else ""


def _class(css: str) -> str:
    return f' class="{css}"' if css else ""
