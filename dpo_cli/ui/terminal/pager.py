"""Long output through the user's pager."""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import shlex
import signal
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import IO

from rich.console import Console, RenderableType

from dpo_cli.errors import naming
from dpo_cli.printable import DEGRADE
from dpo_cli.run.processes import start_child
from dpo_cli.streams import stream_name

_PAGER = "less"
_LESS = "FRX"
"""Quit if everything fits on one screen, show colors, keep the text on exit; as git does."""


def page(console: Console, title: str, pages: Iterable[RenderableType]) -> None:
    """Print a title and pages, through $PAGER or `less` if the console is a terminal.

    Args:
        console: standard output.
        title: printed first.
        pages: consumed lazily: the pipe blocks while the pager is full, so that pages the user
            never scrolls to are not rendered.
    """
    pager = _start_pager() if console.is_terminal else None
    if pager is None or pager.stdin is None:
        with contextlib.suppress(BrokenPipeError):  # the reader, for example `head`, has closed
            _write(console, title, pages, console.file)
        return
    # Ctrl-C reaches the pager, too, which stops searching but keeps running: dying here would
    # leave two processes reading from one terminal.
    previous_handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        stdin = io.TextIOWrapper(pager.stdin, console.encoding, DEGRADE)
        with contextlib.suppress(BrokenPipeError), stdin as text:
            _write(console, title, pages, text)
    finally:
        pager.wait()
        signal.signal(signal.SIGINT, previous_handler)


def pages_with_less(console: Console) -> bool:
    """Return True if `page` shows its pages in `less`, whose keys a title can name."""
    return console.is_terminal and Path(_command()[0]).name == _PAGER


def _command() -> list[str]:
    # PAGER may contain only spaces.
    return shlex.split(os.environ.get("PAGER") or "") or [_PAGER]


def _start_pager() -> subprocess.Popen[bytes] | None:
    command = _command()
    options = {"LESS": os.environ.get("LESS", _LESS)}
    try:
        return start_child(command, stdin=subprocess.PIPE, changes=options, own_session=False)
    except OSError:  # not installed
        return None


def _write(console: Console, title: str, pages: Iterable[RenderableType], file: IO[str]) -> None:
    for renderable in itertools.chain([title], pages):
        with console.capture() as captured:
            console.print(renderable)
        text = captured.get()
        if not console.is_terminal:  # rich pads table cells with spaces
            text = "\n".join(line.rstrip() for line in text.split("\n"))
        with naming(stream_name(file)):
            file.write(text)
            file.flush()
