"""Screen of a terminal after some output; supports the few control codes of the tests."""

from __future__ import annotations

import re

from rich.cells import cell_len

_CODE = re.compile(r"\x1b\[(\??\d*(?:;\d+)*)([A-Za-z])")


class Screen:
    """Lines on a screen, including those that were scrolled away.

    Args:
        columns, rows: size of the terminal.
    """

    def __init__(self, columns: int, rows: int) -> None:
        self.lines = [""]
        self._columns, self._rows = columns, rows
        self._row = 0

    def write(self, text: str) -> None:
        """Process output, in pieces that do not divide a control code."""
        at = 0
        while at < len(text):
            if match := _CODE.match(text, at):
                self._obey(*match.groups())
                at = match.end()
            else:
                self._put(text[at])
                at += 1

    def _obey(self, argument: str, letter: str) -> None:
        if letter == "A":
            self._row -= int(argument or 1)
            assert self._row >= max(0, len(self.lines) - self._rows), "above the screen"
        elif letter == "K":
            assert argument == "2"
            self.lines[self._row] = ""
        else:
            assert letter in "mhl", f"{argument}{letter} is not known here"

    def _put(self, character: str) -> None:
        if character == "\n":
            self._row += 1
            if self._row == len(self.lines):
                self.lines.append("")
        elif character != "\r":
            assert character.isprintable() or character == "\u3000"
            self.lines[self._row] += character
            assert cell_len(self.lines[self._row]) <= self._columns, "it would be wrapped"
