"""Text that rich prints."""

from __future__ import annotations

import io

from rich.console import Console, RenderableType


def shown(renderable: RenderableType, width: int = 60, *, color: bool = False) -> str:
    """Return the lines on a terminal of this width, without trailing blanks."""
    console = Console(
        width=width,
        file=io.StringIO(),
        force_terminal=color,
        color_system="standard" if color else None,
        highlight=False,
        markup=False,
        emoji=False,
    )
    with console.capture() as capture:
        console.print(renderable)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())
