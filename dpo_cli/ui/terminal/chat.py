"""Input and output of a chat, on a terminal or through pipes."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.text import Text

from dpo_cli.printable import printable
from dpo_cli.ui.terminal.answers import Reply, show_answers, write_answers
from dpo_cli.ui.terminal.keyboard import Keyboard, deferred_ctrl_c
from dpo_cli.ui.terminal.panel import has_terminal

_PROMPT = "> "


class ChatScreen:
    """Reads prompts from standard input and shows the answers of one or two models.

    Args:
        console: standard output; answers are shown in columns on a terminal, as text otherwise.
        notes: console for everything that is not an answer.
        names: names of the models.
    """

    def __init__(self, console: Console, notes: Console, names: Sequence[str]) -> None:
        self._console, self._notes, self._names = console, notes, names
        self._has_terminal = has_terminal(console)

    @property
    def is_interactive(self) -> bool:
        """Return True if both input and output are a terminal."""
        return self._has_terminal and sys.stdin.isatty()

    def questions(self) -> Iterator[str]:
        """Yield the lines the user types, until Ctrl-D; empty lines are skipped."""
        has_prompt = self.is_interactive
        if has_prompt:
            with contextlib.suppress(ImportError):
                import readline  # noqa: F401 - gives `input` line editing and a history
        while True:
            try:
                line = input(_PROMPT if has_prompt else "")
                line.encode()  # input that is not UTF-8 arrives as surrogates, which do not encode
            except EOFError:
                if has_prompt:
                    self._console.print()
                return
            except KeyboardInterrupt:
                if not has_prompt:
                    raise
                self._console.print()
                self.note("No answer to stop. Ctrl-D ends the chat.")
                continue
            except UnicodeError:
                self.note("This line is not valid UTF-8.")
                continue
            if line.strip():
                yield line.strip()

    def show(self, replies: Sequence[Reply]) -> bool:
        """Show answers while they are generated; return True if Ctrl-C stopped them."""
        with deferred_ctrl_c() as is_stopped:
            if not self._has_terminal:
                write_answers(self._console, self._notes, self._names, replies, is_stopped)
            else:
                with Keyboard():  # without echo: typed characters would appear between the answers
                    show_answers(self._console, self._names, replies, is_stopped)
                self._console.print()
            return is_stopped()

    def note(self, text: str) -> None:
        """Print a remark that is not part of an answer."""
        self._notes.print(Text(printable(text), style="dim"))
