"""Long output: through the user's pager on a terminal, else straight out."""

from __future__ import annotations

import contextlib
import itertools
import os
import shlex
import signal
import subprocess
from collections.abc import Iterable
from typing import IO

from rich.console import Console, RenderableType

_PAGER = "less"
_LESS = "FRX"
"""Quit if it all fits on a screen, show colors, and leave what was shown there; as git does."""


def page(console: Console, title: str, pages: Iterable[RenderableType]) -> None:
    """Print a title and pages, made as they are asked for: nobody waits for what he never sees.

    Args:
        console: standard output; where that is a terminal, the pager in PAGER, or less, comes
            between, if it is there.
        title: first.
        pages: each is printed when there is room for it.
    """
    pager = _start_pager() if console.is_terminal else None
    if pager is None or pager.stdin is None:
        with contextlib.suppress(BrokenPipeError):  # whoever reads it has seen enough
            _write(console, title, pages, console.file)
        return
    # Ctrl-C is for the pager, which stops what it is doing, and stays.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with contextlib.suppress(BrokenPipeError), pager.stdin:
            _write(console, title, pages, pager.stdin)
    finally:
        pager.wait()
        signal.signal(signal.SIGINT, before)


def _start_pager() -> subprocess.Popen[str] | None:
    command = shlex.split(os.environ.get("PAGER") or _PAGER)
    environment = {"LESS": _LESS, **os.environ}
    try:
        return subprocess.Popen(command, stdin=subprocess.PIPE, text=True, env=environment)
    except (OSError, IndexError):  # there is none, or PAGER holds nothing but spaces
        return None


def _write(console: Console, title: str, pages: Iterable[RenderableType], file: IO[str]) -> None:
    """Each page as the console would print it."""
    for renderable in itertools.chain([title], pages):
        with console.capture() as captured:
            console.print(renderable)
        text = captured.get()
        if not console.is_terminal:  # where lines are filled up with blanks
            text = "\n".join(line.rstrip() for line in text.split("\n"))
        file.write(text)
        file.flush()
