"""Tests of line wrapping of text that arrives in pieces."""

from __future__ import annotations

import random
import sys

import pytest
from rich.cells import cell_len

from dpo_cli.printable import printable
from dpo_cli.ui.terminal.wrapping import Wrapped, hanging


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


def test_an_answer_is_wrapped_between_words_and_indented_to_its_label() -> None:
    answer = "The mill grinds corn for the whole village every morning of the week. " * 3
    lines = [line.plain for line in hanging("  policy: ", answer, 40)]
    assert lines[0] == "  policy: The mill grinds corn for the"
    assert all(line.startswith(" " * 10) for line in lines[1:])
    assert max(map(cell_len, lines)) <= 40
    words = " ".join(line[10:].strip() for line in lines).split()
    assert words == answer.split()


def test_chinese_is_wrapped_anywhere_and_a_long_label_gets_its_own_line() -> None:
    lines = [line.plain for line in hanging("line 4: ", "你好世界" * 8, 20)]
    assert lines[0] == "line 4: 你好世界你好"
    assert "".join(line.strip() for line in lines).removeprefix("line 4: ") == "你好世界" * 8
    assert {cell_len(line) for line in lines[:-1]} == {20}
    label = "a-very-long-file-name.jsonl, line 4: "
    assert [line.plain for line in hanging(label, "Why is it so?", 14)] == [
        label, "    Why is it", "    so?",
    ]  # fmt: skip


def test_without_a_limit_an_answer_is_one_line() -> None:
    [line] = hanging("  policy: ", "a\nb " * 500, sys.maxsize)
    assert line.plain == "  policy: " + ("a b " * 500).strip()
