"""Console and `echo`, which make all printed text safe; see `dpo_cli.printable`."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from types import TracebackType

import typer
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from dpo_cli.errors import naming
from dpo_cli.printable import printable
from dpo_cli.streams import stream_name


class SafeConsole(Console):
    """Console that makes every text safe to print, at any depth of nested renderables.

    Escape sequences of rich are segments with `control` codes, or styles; both stay unchanged.
    """

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Render an object to segments without unsafe characters."""
        for segment in super().render(renderable, options):
            safe = segment.text if segment.control else printable(segment.text)
            yield segment if safe is segment.text else Segment(safe, segment.style)

    def out(self, *objects: object, **settings: object) -> None:
        """Print text as it is, without unsafe characters; see `rich.console.Console.out`."""
        super().out(*(printable(str(each)) for each in objects), **settings)  # type: ignore[arg-type]

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Write what was printed; an error of the system names the stream."""
        with naming(stream_name(self.file)):
            super().__exit__(kind, error, trace)


def line_console(*, stderr: bool = False) -> SafeConsole:
    """Return a console on standard output, or error, for lines of text.

    At the edge of a terminal, lines break between words; elsewhere they are not broken, so that
    programs read whole lines.
    """
    console = SafeConsole(stderr=stderr, highlight=False, markup=False, emoji=False)
    console.soft_wrap = not console.file.isatty()  # rich takes FORCE_COLOR for a terminal
    return console


def echo(text: object = "", *, end: str = "\n") -> None:
    """Print a text on standard output without unsafe characters."""
    with naming(stream_name(sys.stdout)):
        typer.echo(printable(str(text)) + end, nl=False)
