"""Text that comes piece by piece, broken into lines of a width in cells."""

from __future__ import annotations

import unicodedata

from rich.cells import cell_len

_TAB = " " * 4
_PICTURES = 0x2400  # where Unicode has a sign for each control character
_INVISIBLE = ("Cf", "Zl", "Zp")
_WIDE = 2
_CLOSING = frozenset("，。、；：？！）》」』】〉…”’,.;:?!)]}%")
_OPENING = frozenset("（《「『【〈“‘([{")


def printable(text: str) -> str:
    """A model's text without what would move a cursor or change a color; newlines stay.

    Control characters become the signs for them, and what cannot be seen goes.
    """
    return "".join(_shown(character) for character in text)


def _shown(character: str) -> str:
    if character == "\t":
        return _TAB
    if character == "\n" or unicodedata.category(character) not in ("Cc", *_INVISIBLE):
        return character
    return chr(_PICTURES + ord(character)) if ord(character) < 32 else ""


class Wrapped:
    """Lines at most so many cells wide; none but the last can still change.

    A line is broken after a space, or beside a wide character, such as a Chinese one, but not
    before a closing mark or after an opening one; what is longer than a line is broken anywhere.

    Args:
        width: of a line, in cells; at least 2.
    """

    def __init__(self, width: int) -> None:
        self.lines = [""]
        self._width = width
        self._cells = 0  # of the last line

    def add(self, text: str) -> None:
        """Go on with `text`, which holds nothing that `printable` takes out."""
        for character in text:
            if character == "\n":
                self._new_line("")
            elif self._cells + (cells := cell_len(character)) <= self._width:
                self.lines[-1] += character
                self._cells += cells
            elif character == " ":
                self._new_line("")
            else:
                self._break_before(character)

    def _break_before(self, character: str) -> None:
        line = self.lines[-1]
        text, at = line + character, len(line)
        while at and not _may_be_divided(text[at - 1], text[at]):
            at -= 1
        at = at or len(line)
        self.lines[-1] = line[:at].rstrip(" ")
        self._new_line(text[at:])

    def _new_line(self, text: str) -> None:
        self.lines.append(text)
        self._cells = cell_len(text)


def _may_be_divided(before: str, after: str) -> bool:
    if before == " ":
        return True
    is_word = cell_len(before) < _WIDE and cell_len(after) < _WIDE
    return not is_word and before not in _OPENING and after not in _CLOSING
