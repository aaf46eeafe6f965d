"""What rich prints, as text."""

from __future__ import annotations

import io

from rich.console import Console, RenderableType


def shown(renderable: RenderableType, width: int = 60, *, color: bool = False) -> str:
    """The lines of a terminal of that width, without the blanks at their ends."""
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
