"""Text that controls a terminal, and a search for such text in output."""

from __future__ import annotations

import unicodedata

EVIL = "x\x1b]0;t\x07\x1b[2Jy\x9b31m\x85\x7f\x00\r\u200f\u202e\u2028\u2029\u2066\udc9b\ud800 z"
"""Escape sequences, C0, C1, DEL, bidirectional overrides, line separators and half a surrogate."""


def unsafe_characters(text: str) -> set[str]:
    """Return the characters of a text that control a terminal, except newlines."""
    kinds = ("Cc", "Cf", "Cs", "Zl", "Zp")
    return {c for c in text if c != "\n" and unicodedata.category(c) in kinds}
