"""A conversation on a terminal, or on a pipe: what is asked, and the answers to it."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.text import Text

from dpo_cli.ui.terminal.answers import Reply, show_answers, write_answers
from dpo_cli.ui.terminal.keyboard import Keyboard, deferred_ctrl_c
from dpo_cli.ui.terminal.panel import has_terminal
from dpo_cli.ui.terminal.wrapping import printable

_ASK = "> "


class ChatScreen:
    """Where a user and one or two models meet.

    Args:
        console: standard output: columns if it is a terminal, else the answers alone.
        notes: gets everything else there is to say.
        names: of the models.
    """

    def __init__(self, console: Console, notes: Console, names: Sequence[str]) -> None:
        self._console, self._notes, self._names = console, notes, names
        self._has_terminal = has_terminal(console)

    @property
    def is_interactive(self) -> bool:
        """Whether somebody sits there who reads and types."""
        return self._has_terminal and sys.stdin.isatty()

    def questions(self) -> Iterator[str]:
        """What the user types, line by line, up to Ctrl-D; empty lines are passed over."""
        is_asked = self.is_interactive
        if is_asked:
            with contextlib.suppress(ImportError):
                import readline  # noqa: F401 - editing and a history for `input`
        while True:
            try:
                line = input(_ASK if is_asked else "")
                line.encode()  # where a locale lets through what is no text
            except EOFError:
                if is_asked:
                    self._console.print()
                return
            except KeyboardInterrupt:
                if not is_asked:
                    raise
                self._console.print()
                self.tell("there is no answer to stop; Ctrl-D ends")
                continue
            except UnicodeError:
                self.tell("that was not UTF-8")
                continue
            if line.strip():
                yield line.strip()

    def show(self, replies: Sequence[Reply]) -> bool:
        """Show answers as they come; whether Ctrl-C stopped them."""
        with deferred_ctrl_c() as is_stopped:
            if not self._has_terminal:
                write_answers(self._console, self._notes, self._names, replies, is_stopped)
            else:
                with Keyboard():  # what is typed meanwhile would be drawn among the answers
                    show_answers(self._console, self._names, replies, is_stopped)
                self._console.print()
            return is_stopped()

    def tell(self, text: str) -> None:
        """Say something that is no answer."""
        self._notes.print(Text(printable(text), style="dim"))
