"""Line wrapping of text that arrives in pieces, in terminal cells."""

from __future__ import annotations

from rich.cells import cell_len
from rich.text import Text

from dpo_cli.printable import one_line

_WIDE = 2
_CLOSING = frozenset("，。、；：？！）》」』】〉…”’,.;:?!)]}%")
_OPENING = frozenset("（《「『【〈“‘([{")


class Wrapped:
    """Text wrapped into lines; only the last line can still change.

    A line is broken after a space or beside a wide (for example Chinese) character, but not before
    a closing or after an opening punctuation mark. A word longer than a line is broken anywhere.

    Args:
        width: maximum width of a line in cells; at least 2, the width of one Chinese character.
    """

    def __init__(self, width: int) -> None:
        self.lines = [""]
        self._width = width
        self._cells = 0  # width of the last line; counting it again for each character is O(n^2)

    def add(self, text: str) -> None:
        """Append `text`, which must have passed `printable`."""
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
        while at and not _can_break_between(text[at - 1], text[at]):
            at -= 1
        at = at or len(line)  # no place to break: the word is longer than a line
        self.lines[-1] = line[:at].rstrip(" ")
        self._new_line(text[at:])

    def _new_line(self, text: str) -> None:
        self.lines.append(text)
        self._cells = cell_len(text)


def hanging(label: str, text: str, width: int) -> list[Text]:
    """Wrap a text after a dim label; continuation lines are indented to the text.

    Args:
        label: is not wrapped. After a label of more than half a line the text begins a new line.
        text: white space in it becomes single spaces.
        width: width of the lines in cells.
    """
    indent = cell_len(label)
    first = [Text(label, "dim")]
    if 2 * indent > width:
        indent = 4
        first = [Text(label, "dim"), Text(" " * indent)]
    wrapped = Wrapped(max(2, width - indent))
    wrapped.add(one_line(text))
    begin, *rest = wrapped.lines
    first[-1].append(begin, "not dim")
    return [*first, *(Text(" " * indent + line) for line in rest)]


def _can_break_between(before: str, after: str) -> bool:
    if before == " ":
        return True
    is_word = cell_len(before) < _WIDE and cell_len(after) < _WIDE
    return not is_word and before not in _OPENING and after not in _CLOSING
