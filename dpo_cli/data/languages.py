"""Which language a text is written in, as far as its letters tell."""

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
"""Of the letters: an ideograph says about as much as three or four Latin letters."""


def language_of(text: str) -> Language | None:
    """The language of a text by the script it begins in; None where it has no letters.

    A heuristic: all that is written in Latin letters is one, code and English alike, and Japanese
    counts as other by its kana.
    """
    text = text[:_LOOKED_AT_CHARACTERS]
    letters = len(_LETTER.findall(text))
    if not letters:
        return None
    ideographs = len(_IDEOGRAPH.findall(text))
    if ideographs >= _CHINESE_SHARE * letters and len(_KANA.findall(text)) < ideographs / 4:
        return "Chinese"
    return "Latin" if 2 * len(_LATIN.findall(text)) > letters else "other"
