"""Tests of line wrapping of text that arrives in pieces."""

from __future__ import annotations

import random

import pytest
from rich.cells import cell_len

from dpo_cli.printable import printable
from dpo_cli.ui.terminal.wrapping import Wrapped


def wrapped(text: str, width: int) -> list[str]:
    lines = Wrapped(width)
    lines.add(text)
    return lines.lines


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("", [""]),
        ("one two three", ["one two", "three"]),
        ("one two  three", ["one two ", "three"]),
        ("one\n\n two\n", ["one", "", " two", ""]),
        ("incomprehensibilities", ["incomp", "rehens", "ibilit", "ies"]),
        ("a incomprehensible", ["a", "incomp", "rehens", "ible"]),
        ("1. 你好世界", ["1. 你", "好世界"]),
        ("你好世界你", ["你好世", "界你"]),
        ("你好世，界", ["你好", "世，界"]),  # no line begins with a comma
        ("你好（世界", ["你好", "（世界"]),
        ("你好 abc", ["你好", "abc"]),
        ("你好abc", ["你好", "abc"]),
    ],
)
def test_where_lines_are_broken(text: str, lines: list[str]) -> None:
    width = 8 if text.startswith("one") else 6
    assert wrapped(text, width) == lines


def test_only_the_last_line_changes_and_pieces_do_not_matter() -> None:
    generator = random.Random(7)
    for _ in range(100):
        text = "".join(generator.choice("ab  \n你好，。（a1") for _ in range(80))
        lines = Wrapped(9)
        for character in text:
            before = list(lines.lines)
            lines.add(character)
            assert lines.lines[: len(before) - 1] == before[:-1] or len(lines.lines) > len(before)
        assert lines.lines == wrapped(text, 9)
        assert max(map(cell_len, lines.lines)) <= 9
        assert "".join(lines.lines).replace(" ", "") == text.replace(" ", "").replace("\n", "")


def test_control_characters_are_shown_as_signs() -> None:
    assert printable("a\x1b[2J\r\nb\tc\x7f\x9b\u202e\u200b\u3000你🍜") == "a␛[2J␍\nb    c\u3000你🍜"
