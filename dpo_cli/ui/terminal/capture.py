"""Terminal output as a file: SVG with colors, or plain text."""

from __future__ import annotations

import io
import re

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console

from dpo_cli.printable import printable
from dpo_cli.ui.terminal.console import SafeConsole

_FONT_FACES = re.compile(r"@font-face \{\{.*?\}\}", re.DOTALL)
"""Part of rich's template that loads a font from the network; any monospaced font will do."""


def recording_console(width: int, height: int) -> Console:
    """Return a console of this size that records its output for `captured_file`."""
    return SafeConsole(
        width=width,
        height=height,
        file=io.StringIO(),
        record=True,
        force_terminal=True,
        color_system="standard",
        no_color=False,
        highlight=False,
        markup=False,
        emoji=False,
    )


def captured_file(console: Console, name: str, title: str) -> bytes:
    """Return the output of a `recording_console` as the content of a file.

    Args:
        console: the recording console.
        name: name of the file; plain text if it ends in .txt, SVG otherwise.
        title: title above an SVG.
    """
    if name.endswith(".txt"):
        return console.export_text().encode()
    form = _FONT_FACES.sub("", CONSOLE_SVG_FORMAT)
    return console.export_svg(title=printable(title), code_format=form).encode()
