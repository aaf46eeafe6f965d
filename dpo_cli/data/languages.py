"""Language detection by script."""

from __future__ import annotations

import re
from typing import Literal

Language = Literal["Chinese", "Latin", "other"]
LANGUAGES: tuple[Language, ...] = ("Chinese", "Latin", "other")

_LOOKED_AT_CHARACTERS = 500
_LETTER = re.compile(r"[^\W\d_]")
_LATIN = re.compile("[A-Za-z\u00c0-\u024f]")
_IDEOGRAPH = re.compile("[\u3400-\u9fff]")
_KANA = re.compile("[\u3040-\u30ff]")
_CHINESE_SHARE = 0.25
"""Share of ideographs among letters; an ideograph stands for three or four Latin letters."""


def language_of(text: str) -> Language | None:
    """Return the language of a text by the script at its beginning; None without letters.

    A heuristic: everything in Latin letters is one language, code included, and Japanese counts as
    "other" because of its kana.
    """
    text = text[:_LOOKED_AT_CHARACTERS]
    letters = len(_LETTER.findall(text))
    if not letters:
        return None
    ideographs = len(_IDEOGRAPH.findall(text))
    if ideographs >= _CHINESE_SHARE * letters and len(_KANA.findall(text)) < ideographs / 4:
        return "Chinese"
    return "Latin" if 2 * len(_LATIN.findall(text)) > letters else "other"
