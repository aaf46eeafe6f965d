"""Display of answers while they are generated: side by side on a terminal, else one by one.

An answer is an iterator of pieces of text; this module does not depend on models.
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
from dpo_cli.printable import printable
from dpo_cli.ui.terminal.layout import fit
from dpo_cli.ui.terminal.panel import terminal_size
from dpo_cli.ui.terminal.wrapping import Wrapped

NARROWEST_PAIR = 72
"""Width in cells below which two answers are shown one below the other."""

_SEPARATOR = " │ "
_CURSOR = "▌"
_FRAME_SECONDS = 1 / 30
"""Minimum time between two drawings of a line that is still growing."""
_STYLES = ("bold cyan", "bold magenta")


class Reply(Protocol):
    """Answer generated piece by piece; see `dpo_cli.inference.chat.Answer`."""

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
    """Draw answers on a terminal while they are generated, with length and speed below each.

    Args:
        console: a terminal.
        names: names of the models.
        replies: one per name; advanced in turns, so that their lines grow at the same pace.
        is_stopped: checked after each piece; if True, the text so far is kept.
    """
    named = list(zip(names, replies, strict=True))
    is_narrow = terminal_size().width < NARROWEST_PAIR
    for number, group in enumerate([[one] for one in named] if is_narrow else [named]):
        if number:
            console.print()
        _Columns(console, group, is_stopped, has_heads=len(replies) > 1).run()
    if len(replies) > 1 and len({reply.text for reply in replies}) == 1 and not is_stopped():
        console.print(Text("Both answers are identical.", style="dim"))


def write_answers(
    console: Console,
    notes: Console,
    names: Sequence[str],
    replies: Sequence[Reply],
    is_stopped: Callable[[], bool],
) -> None:
    """Write answers as plain text while they are generated, one after another.

    Args:
        console: for the answers; each is preceded by its name if there are several.
        notes: for length and speed of each answer.
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
    """Answers in columns, printed as ordinary output once a line is final.

    Only the last lines, which some column has not reached yet, are drawn again. Answers can
    therefore be longer than the screen, and stay in the terminal's scrollback.
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
        self._unfinished = set(range(len(named)))
        self._may_draw_at = 0.0
        self._begin()

    def run(self) -> None:
        """Generate and draw all answers."""
        while self._unfinished and not self._is_stopped():
            # Advance the answer with the fewest lines: lines that both have reached are final.
            turn = min(
                self._unfinished,
                key=lambda i: (len(self._columns[i].lines), self._replies[i].tokens),
            )
            piece = next(self._replies[turn], None)
            if piece is None:
                self._unfinished.discard(turn)
            else:
                self._columns[turn].add(printable(piece))
            self._draw()
        stopped = set(self._unfinished)
        self._unfinished.clear()
        self._may_draw_at = 0.0
        self._draw()
        paces = [
            Text(_pace(reply, number in stopped), "dim")
            for number, reply in enumerate(self._replies)
        ]
        self._console.print(self._row(paces))

    def _begin(self) -> None:
        """Lay out the text so far for the current size of the terminal."""
        self._size = self._console.size = terminal_size()
        columns = len(self._replies)
        self._width = max(3, (self._size.width - len(_SEPARATOR) * (columns - 1)) // columns)
        self._columns = [Wrapped(self._width - 1) for _ in self._replies]  # room for the cursor
        for column, reply in zip(self._columns, self._replies, strict=True):
            column.add(printable(reply.text))
        self._done = 0  # lines that are final and printed
        self._pending = 0  # lines below them, to be drawn again
        if self._has_heads:
            heads = zip(self._names, _STYLES, strict=False)
            self._console.print(self._row([Text(name, style) for name, style in heads]))

    def _draw(self) -> None:
        if terminal_size() != self._size:
            # After a resize the terminal has re-wrapped the printed lines, so that the cursor
            # positions computed here are wrong. Start again below them.
            self._console.print()
            self._begin()
        lengths = [len(column.lines) for column in self._columns]
        done = min((lengths[number] - 1 for number in self._unfinished), default=max(lengths))
        now = time.monotonic()
        if done == self._done and now < self._may_draw_at:
            return
        self._may_draw_at = now + _FRAME_SECONDS
        # The cursor cannot move above the top of the screen: draw at most one screen again.
        bottom = max(done, min(max(lengths), done + self._size.height - 2))
        with self._console:  # buffers into one write; several would flicker
            self._console.control(_erase_lines(self._pending))
            for at in range(self._done, bottom):
                cells = [self._cell(number, at) for number in range(len(lengths))]
                self._console.print(self._row(cells))
        self._done, self._pending = done, bottom - done

    def _cell(self, number: int, at: int) -> Text:
        lines = self._columns[number].lines
        if at >= len(lines):
            return Text()
        is_last = number in self._unfinished and at == len(lines) - 1
        return Text.assemble(lines[at], (_CURSOR if is_last else "", "dim"))

    def _row(self, cells: Sequence[Text]) -> Text:
        *before, last = cells
        row = Text(no_wrap=True, overflow="crop")
        for cell in before:
            row.append_text(fit(cell, self._width)).append(_SEPARATOR, "dim")
        last = last.copy()
        last.truncate(self._width, overflow="ellipsis")
        return row.append_text(last)


def _erase_lines(lines: int) -> Control:
    """Return the control codes that move up by `lines` and erase each of them."""
    step = ((ControlType.CURSOR_UP, 1), (ControlType.ERASE_IN_LINE, 2))
    return Control(*(step * lines))


def _pace(reply: Reply, was_stopped: bool) -> str:
    """Return length, speed and, if not complete, the reason of the end of an answer."""
    words = format_count(reply.tokens, "token")
    if reply.seconds:
        words += f", {reply.tokens / reply.seconds:.1f} tokens/s"
    if reply.is_cut:
        words += ", truncated"
    return words + (", stopped" if was_stopped else "")
