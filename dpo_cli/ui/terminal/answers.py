"""Answers while they come: side by side on a terminal, one after another elsewhere.

Knows nothing of models: an answer is an iterator of pieces of text.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Protocol

from rich.console import Console
from rich.control import Control
from rich.segment import ControlType
from rich.text import Text

from dpo_cli.formatting import format_count
from dpo_cli.ui.terminal.layout import fit
from dpo_cli.ui.terminal.panel import terminal_size
from dpo_cli.ui.terminal.wrapping import Wrapped, printable

NARROWEST_PAIR = 72
"""Columns of a terminal below which two answers stand one below the other."""

_BETWEEN = " │ "
_CURSOR = "▌"
_REST_SECONDS = 1 / 30
"""Between two pictures of a line that is still being written."""
_STYLES = ("bold cyan", "bold magenta")


class Reply(Protocol):
    """An answer in pieces; see `dpo_cli.inference.chat.Answer`."""

    text: str
    tokens: int
    seconds: float
    is_cut: bool

    def __next__(self) -> str: ...


def show_answers(
    console: Console,
    names: Sequence[str],
    replies: Sequence[Reply],
    is_stopped: Callable[[], bool],
) -> None:
    """Draw answers on a terminal as they come, and under each how long it took.

    Args:
        console: a terminal.
        names: of who answers.
        replies: one each; which is to go on is decided here, so that their lines keep step.
        is_stopped: asked after each piece; what is said by then stays.
    """
    each = list(zip(names, replies, strict=True))
    is_narrow = terminal_size().width < NARROWEST_PAIR
    for number, group in enumerate([[one] for one in each] if is_narrow else [each]):
        if number:
            console.print()
        _Columns(console, group, is_stopped, has_heads=len(replies) > 1).run()
    if len(replies) > 1 and len({reply.text for reply in replies}) == 1 and not is_stopped():
        console.print(Text("both answers are the same", style="dim"))


def write_answers(
    console: Console,
    notes: Console,
    names: Sequence[str],
    replies: Sequence[Reply],
    is_stopped: Callable[[], bool],
) -> None:
    """Write answers as plain text as they come, one after another.

    Args:
        console: gets the answers, each under its name where there are several.
        notes: gets how long each took.
        names, replies, is_stopped: see `show_answers`.
    """
    for number, (name, reply) in enumerate(zip(names, replies, strict=True)):
        if is_stopped():
            return
        if number:
            console.out()
        if len(replies) > 1:
            console.out(f"{name}:", highlight=False)
        was_stopped = False
        while not was_stopped and (piece := next(reply, None)) is not None:
            console.out(printable(piece), end="", highlight=False)
            console.file.flush()
            was_stopped = is_stopped()
        console.out()
        console.file.flush()
        notes.print(Text(f"{name}: {_pace(reply, was_stopped)}"))


class _Columns:
    """Answers beside each other; what cannot change any more is ordinary output.

    Only the last lines, those that not all columns have reached, are drawn again, so that answers
    may be longer than the screen and can be scrolled back to.
    """

    def __init__(
        self,
        console: Console,
        named: Sequence[tuple[str, Reply]],
        is_stopped: Callable[[], bool],
        *,
        has_heads: bool,
    ) -> None:
        self._console, self._is_stopped, self._has_heads = console, is_stopped, has_heads
        self._names = [name for name, _ in named]
        self._replies = [reply for _, reply in named]
        self._alive = set(range(len(named)))
        self._may_draw_at = 0.0
        self._begin()

    def run(self) -> None:
        """Let everybody speak, and draw it."""
        while self._alive and not self._is_stopped():
            # Whoever is behind goes on: lines that both have reached are done with.
            turn = min(
                self._alive,
                key=lambda each: (len(self._columns[each].lines), self._replies[each].tokens),
            )
            piece = next(self._replies[turn], None)
            if piece is None:
                self._alive.discard(turn)
            else:
                self._columns[turn].add(printable(piece))
            self._draw()
        stopped = set(self._alive)
        self._alive.clear()
        self._may_draw_at = 0.0
        self._draw()
        paces = [
            Text(_pace(reply, number in stopped), "dim")
            for number, reply in enumerate(self._replies)
        ]
        self._console.print(self._row(paces))

    def _begin(self) -> None:
        """Lay out what has been said so far for the terminal as it is now."""
        self._size = self._console.size = terminal_size()
        columns = len(self._replies)
        self._width = max(3, (self._size.width - len(_BETWEEN) * (columns - 1)) // columns)
        self._columns = [Wrapped(self._width - 1) for _ in self._replies]  # room for the cursor
        for column, reply in zip(self._columns, self._replies, strict=True):
            column.add(printable(reply.text))
        self._done = 0  # lines of the answers that are ordinary output
        self._pending = 0  # lines below them that will be drawn again
        if self._has_heads:
            heads = zip(self._names, _STYLES, strict=False)
            self._console.print(self._row([Text(name, style) for name, style in heads]))

    def _draw(self) -> None:
        if terminal_size() != self._size:
            # Lines that the terminal has wrapped anew cannot be found again: start below them.
            self._console.print()
            self._begin()
        lengths = [len(column.lines) for column in self._columns]
        done = min((lengths[number] - 1 for number in self._alive), default=max(lengths))
        now = time.monotonic()
        if done == self._done and now < self._may_draw_at:
            return
        self._may_draw_at = now + _REST_SECONDS
        # What has left the screen cannot be drawn again.
        bottom = max(done, min(max(lengths), done + self._size.height - 2))
        with self._console:  # one write, so that nothing flickers
            self._console.control(_rise(self._pending))
            for at in range(self._done, bottom):
                cells = [self._cell(number, at) for number in range(len(lengths))]
                self._console.print(self._row(cells))
        self._done, self._pending = done, bottom - done

    def _cell(self, number: int, at: int) -> Text:
        lines = self._columns[number].lines
        if at >= len(lines):
            return Text()
        is_last = number in self._alive and at == len(lines) - 1
        return Text.assemble(lines[at], (_CURSOR if is_last else "", "dim"))

    def _row(self, cells: Sequence[Text]) -> Text:
        """One line of the screen."""
        *before, last = cells
        row = Text(no_wrap=True, overflow="crop")
        for cell in before:
            row.append_text(fit(cell, self._width)).append(_BETWEEN, "dim")
        last = last.copy()
        last.truncate(self._width, overflow="ellipsis")
        return row.append_text(last)


def _rise(lines: int) -> Control:
    """Up by so many lines, emptying them; from the beginning of a line."""
    step = ((ControlType.CURSOR_UP, 1), (ControlType.ERASE_IN_LINE, 2))
    return Control(*(step * lines))


def _pace(reply: Reply, was_stopped: bool) -> str:
    """How long an answer is, how fast it came, and how it ended if not by itself."""
    words = format_count(reply.tokens, "token")
    if reply.seconds:
        words += f", {reply.tokens / reply.seconds:.1f} a second"
    if reply.is_cut:
        words += ", cut"
    return words + (", stopped" if was_stopped else "")
