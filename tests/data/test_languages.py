"""Tests of languages by their letters."""

from __future__ import annotations

import pytest

from dpo_cli.data.languages import Language, language_of


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("The sea is wide, and so am I.", "Latin"),
        ("Où est la forêt ? Là-bas, très loin.", "Latin"),
        ("徒步前往秘鲁马丘比丘，是一次难忘的经历。", "Chinese"),
        ("用 Python 写一个函数，在屏幕上打印出 hello world 这句话。", "Chinese"),
        ("The word 猫 means cat, and nothing else whatsoever.", "Latin"),
        ("これは日本語の文章です。漢字もあります。", "other"),
        ("Это предложение написано по-русски.", "other"),
        ("고양이는 귀엽습니다.", "other"),
        ("12 + 30 = 42", None),
        ("", None),
        ("!" * 501 + "words", None),  # it starts without letters, and only the start is read
    ],
)
def test_the_language_of_a_text(text: str, language: Language | None) -> None:
    assert language_of(text) == language
