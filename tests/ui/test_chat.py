"""Tests of a chat on a pseudo-terminal; the models are lists of words."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.terminal import Terminal

CHAT = """
import sys, time
from dpo_cli.commands.chat import ROLES, _converse
from dpo_cli.ui.terminal.console import line_console
from dpo_cli.errors import DpoError
from dpo_cli.ui.terminal.chat import ChatScreen

class FixedReply:
    text, tokens, seconds, is_cut = "", 0, 0.0, False
    def __init__(self, pieces, rest):
        self.pieces, self.rest = iter(pieces), rest
    def __next__(self):
        piece = next(self.pieces)
        time.sleep(self.rest)
        self.text, self.tokens, self.seconds = self.text + piece, self.tokens + 1, 1.0
        return piece

class Conversation:
    def __init__(self, word):
        self.word, self.asked = word, 0
    def ask(self, question):
        if question == "too long":
            raise DpoError("the conversation is too long")
        self.asked += 1
        times = 10**6 if question == "for ever" else 3
        return FixedReply([f"{self.word}{self.asked} "] * times, 0.01)
    def undo(self):
        self.asked -= 1
    def clear(self):
        self.asked = 0

screen = ChatScreen(line_console(), line_console(), ROLES)
_converse(screen, [Conversation("\\u5f3a"), Conversation("good")])
print("the end")
"""


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    with Terminal(CHAT, cwd=tmp_path) as terminal:
        terminal.until(lambda: "> " in terminal.raw, 60)
        yield terminal


def until_prompt(terminal: Terminal, *after: str) -> None:
    """Wait for the next prompt, after the given texts in this order."""

    def is_asked() -> bool:
        rest = "\n".join(terminal.lines) + "\n"
        for text in after:
            if text not in rest:
                return False
            rest = rest.partition(text)[2]
        return re.search(r"^>[> ]*$", rest, re.MULTILINE) is not None

    terminal.until(is_asked, 60)


def test_turns_commands_and_the_end(terminal: Terminal) -> None:
    terminal.press("为什么？\n")
    until_prompt(terminal, "强1 强1 强1", "3 tokens, 3.0 tokens/s")
    terminal.press("too long\n")
    until_prompt(terminal, "error: the conversation is too long; /reset starts a new")
    terminal.press("\n/hlep\n")
    until_prompt(terminal, "unknown command /hlep: /reset starts a new")
    terminal.press("again\n")
    until_prompt(terminal, "/hlep:", "good2 good2 good2", "3 tokens, 3.0 tokens/s")
    terminal.press("/reset\n")
    until_prompt(terminal, "empty again")
    terminal.press("again\n")
    until_prompt(terminal, "empty again", "good1 good1 good1", "3 tokens, 3.0 tokens/s")
    terminal.press("/quit\n")
    assert terminal.wait() == 0
    assert terminal.lines[-1] == "the end"
    assert terminal.modes_now() == terminal.modes


def test_ctrl_c_stops_answers_and_nothing_else(terminal: Terminal) -> None:
    terminal.press("for ever\n")
    terminal.until(lambda: terminal.raw.count("good1") > 3)
    terminal.press("typed meanwhile\x03")
    until_prompt(terminal, ", stopped", ", stopped")
    terminal.press("\x03")
    until_prompt(terminal, "No answer to stop. Ctrl-D ends")
    terminal.press("next\n")
    until_prompt(terminal, "Ctrl-D ends", "good2 good2 good2", "3 tokens, 3.0 tokens/s")
    assert "typed meanwhile" not in terminal.raw
    terminal.press("\x04")
    assert terminal.wait() == 0
    assert terminal.modes_now() == terminal.modes


def test_a_resize_in_the_middle(terminal: Terminal) -> None:
    terminal.press("for ever\n")
    terminal.until(lambda: terminal.raw.count("good1") > 3)
    terminal.resize(40, 12)
    terminal.until(lambda: terminal.raw.count("policy") == 2)
    terminal.press("\x03")
    until_prompt(terminal, "policy", "policy", " tokens, ", " tokens, ")
    terminal.press("\x04")
    assert terminal.wait() == 0


def test_a_dumb_terminal_gets_plain_text(tmp_path: Path) -> None:
    with Terminal(CHAT, cwd=tmp_path, TERM="dumb") as terminal:
        terminal.press("why?\n")
        terminal.until(lambda: "reference: 3 tokens, 3.0 tokens/s" in terminal.raw, 60)
        terminal.press("\x04")
        assert terminal.wait() == 0
        assert "policy:\r\n强1 强1 强1 \r\n" in terminal.raw
        assert "\x1b[" not in terminal.raw
