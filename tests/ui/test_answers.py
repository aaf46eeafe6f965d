"""Tests of answers side by side on a terminal; the models are lists of words."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable

import pytest
from rich.console import Console, ConsoleDimensions

from dpo_cli.ui.terminal import answers
from dpo_cli.ui.terminal.answers import show_answers, write_answers
from tests.support.screen import Screen
from tests.support.snapshots import assert_snapshot

NAMES = ("policy", "reference")
ENGLISH = (
    "Gravity is the force by which a planet draws objects toward its center. It keeps the planets"
    " in their orbits around the sun.\n\n1. It acts at any distance.\n2. It is weak.\n" * 3
)
CHINESE = "重力是行星把物体拉向其中心的力。（1）它使行星围绕太阳运行，也使苹果落到地上。\n" * 4


class FixedReply:
    """Reply with given pieces: one token each, 8 tokens per second."""

    def __init__(self, pieces: Iterable[str], *, is_cut: bool = False) -> None:
        self.text, self.tokens, self.seconds, self.is_cut = "", 0, 0.0, False
        self._pieces, self._ends_cut = iter(pieces), is_cut

    def __next__(self) -> str:
        try:
            piece = next(self._pieces)
        except StopIteration:
            self.is_cut = self._ends_cut
            raise
        self.text += piece
        self.tokens += 1
        self.seconds += 1 / 8
        return piece


def never() -> bool:
    return False


class FakeTerminal:
    """Terminal for `show_answers`; `text` is the content of its screen."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, columns: int, rows: int) -> None:
        self.size = ConsoleDimensions(columns, rows)
        monkeypatch.setattr(answers, "terminal_size", lambda: self.size)
        self.screen = Screen(columns, rows)
        self._file = io.StringIO()
        self.console = Console(
            file=self._file,
            force_terminal=True,
            width=columns,
            height=rows,
            highlight=False,
            markup=False,
            emoji=False,
            soft_wrap=True,
        )

    def show(self, *replies: FixedReply, is_stopped: Callable[[], bool] = never) -> str:
        show_answers(self.console, NAMES[: len(replies)], replies, is_stopped)
        return self.text

    @property
    def text(self) -> str:
        self.screen.write(self._file.getvalue())
        self._file.seek(0)
        self._file.truncate()
        return "\n".join(line.rstrip() for line in self.screen.lines)


@pytest.fixture(params=[0.0, 1e9], ids=["each-piece", "rarely"])
def frame_seconds(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw after each piece, or only at the end: the final screen must be the same."""
    monkeypatch.setattr(answers, "_FRAME_SECONDS", request.param)


@pytest.mark.parametrize(("columns", "rows"), [(80, 24), (160, 50), (50, 20)])
def test_snapshots(
    monkeypatch: pytest.MonkeyPatch, frame_seconds: None, columns: int, rows: int
) -> None:
    words = [word if number == 0 else f" {word}" for number, word in enumerate(ENGLISH.split(" "))]
    shown = FakeTerminal(monkeypatch, columns, rows)
    text = shown.show(FixedReply(words, is_cut=True), FixedReply(CHINESE))
    assert_snapshot(f"answers-{columns}x{rows}", text)


@pytest.mark.parametrize("columns", [80, 50, 12])
def test_every_word_is_on_the_screen_once(
    monkeypatch: pytest.MonkeyPatch, frame_seconds: None, columns: int
) -> None:
    said = [f"w{number} " for number in range(150)]
    lines = [f"z{number}\n" for number in range(90)]
    text = FakeTerminal(monkeypatch, columns, 10).show(FixedReply(said), FixedReply(lines))
    words = text.split()
    for word in (*said, *lines):
        assert words.count(word.strip()) == 1


def test_lines_of_both_answers_grow_at_the_same_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few lines are drawn again: the answer with more lines waits for the other."""
    long, short = FixedReply(["word "] * 200), FixedReply(["x\n"] * 20)
    behind = []

    def look() -> bool:
        behind.append(short.text.count("\n") - len(long.text) // 35)
        return False

    FakeTerminal(monkeypatch, 80, 24).show(long, short, is_stopped=look)
    assert max(behind) <= 2


def test_a_burst_of_lines_larger_than_the_screen(
    monkeypatch: pytest.MonkeyPatch, frame_seconds: None
) -> None:
    burst = "\n".join(f"b{number}" for number in range(40))
    text = FakeTerminal(monkeypatch, 80, 10).show(
        FixedReply(["start\n", burst, "\nend"]), FixedReply(["a "] * 30)
    )
    words = text.split()
    assert [word for word in words if word[0] == "b" and word[1:].isdigit()] == burst.split()
    assert words.count("a") == 30


def test_stopping_keeps_the_text_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = FixedReply(["one "] * 50), FixedReply(["two "] * 50)
    text = FakeTerminal(monkeypatch, 80, 24).show(
        first, second, is_stopped=lambda: first.tokens + second.tokens >= 7
    )
    assert text.count("one") == 4
    assert text.count("two") == 3
    assert "4 tokens, 8.0 tokens/s, stopped" in text
    assert "▌" not in text


def test_a_complete_answer_is_not_marked_as_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = FixedReply(["one"]), FixedReply(["two "] * 50)
    text = FakeTerminal(monkeypatch, 80, 24).show(
        first, second, is_stopped=lambda: second.tokens >= 7
    )
    assert (
        text.splitlines()[-1] == f"{'1 token, 8.0 tokens/s':<38} │ 7 tokens, 8.0 tokens/s, stopped"
    )
    out, notes = Console(file=io.StringIO()), Console(file=io.StringIO())
    first, second = FixedReply(["one"]), FixedReply(["two "] * 50)
    write_answers(out, notes, NAMES, [first, second], lambda: second.tokens >= 7)
    assert notes.file.getvalue().splitlines() == [
        "policy: 1 token, 8.0 tokens/s",
        "reference: 7 tokens, 8.0 tokens/s, stopped",
    ]


def test_identical_answers_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = FakeTerminal(monkeypatch, 80, 24)
    assert "Both answers are identical." in shown.show(FixedReply(["yes"]), FixedReply(["yes"]))
    shown = FakeTerminal(monkeypatch, 80, 24)
    assert "the same" not in shown.show(FixedReply(["yes"]), FixedReply(["no"]))


def test_one_model_uses_the_whole_width_without_heading(monkeypatch: pytest.MonkeyPatch) -> None:
    text = FakeTerminal(monkeypatch, 40, 24).show(FixedReply(["word "] * 14))
    assert text.splitlines() == [
        " ".join(["word"] * 8),
        " ".join(["word"] * 6),
        "14 tokens, 8.0 tokens/s",
    ]


def test_a_resize_starts_again_below(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "_FRAME_SECONDS", 0.0)
    shown = FakeTerminal(monkeypatch, 160, 50)
    first, second = (
        FixedReply([f"w{n} " for n in range(40)]),
        FixedReply([f"z{n} " for n in range(40)]),
    )

    def narrower() -> bool:
        if first.tokens == 20:
            shown.size = ConsoleDimensions(100, 30)
        return False

    text = shown.show(first, second, is_stopped=narrower)
    before, after = text.split("policy")[1:]
    assert "w10" in before
    assert "w39" not in before
    assert all(f"w{number}" in after.split() for number in range(40))
    assert max(map(len, after.splitlines())) <= 100


def test_plain_text_has_only_the_answers() -> None:
    out, notes = io.StringIO(), io.StringIO()
    consoles = [Console(file=file, width=80, soft_wrap=True) for file in (out, notes)]
    replies = [FixedReply(["one", "\x1b[2J", " [b]:smile:"]), FixedReply(["二"], is_cut=True)]
    write_answers(*consoles, NAMES, replies, never)
    assert out.getvalue() == "policy:\none␛[2J [b]:smile:\n\nreference:\n二\n"
    assert notes.getvalue().splitlines() == [
        "policy: 3 tokens, 8.0 tokens/s",
        "reference: 1 token, 8.0 tokens/s, truncated",
    ]
    out.truncate(0)
    write_answers(Console(file=out), consoles[1], NAMES[:1], [FixedReply(["yes"])], never)
    assert out.getvalue().strip("\0") == "yes\n"
