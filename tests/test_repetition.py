"""Repetition of texts."""

from __future__ import annotations

import pytest

from dpo_cli.repetition import repetition

PROSE = (
    "The mill stands by the river, and in spring the water rises to its door. The millstones"
    " have not turned for years; swallows nest under the roof."
)


@pytest.mark.parametrize(
    ("text", "low", "high"),
    [
        (PROSE, 0.0, 0.05),
        ("磨坊在河边，春天水涨到门口。多年来没有人在那里磨谷子，燕子在屋檐下筑巢。", 0.0, 0.05),
        ("3" * 100, 0.98, 1.0),
        ("- - - - - - - - - - - - - - -", 0.85, 1.0),
        (PROSE * 4, 0.7, 0.8),
        ("这个问题这个问题这个问题这个问题这个问题", 0.7, 1.0),
    ],
)
def test_repeated_text_has_a_high_share(text: str, low: float, high: float) -> None:
    assert low <= repetition(text) <= high


@pytest.mark.parametrize("text", ["", "a", "aaaaaa"])
def test_a_text_too_short_to_repeat_has_none(text: str) -> None:
    assert repetition(text) == 0.0


def test_white_space_does_not_count() -> None:
    assert repetition("a tale\n\n   of  two") == repetition("a tale of two")
