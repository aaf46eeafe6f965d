"""Blocks of text of a fixed size: frames, columns, bars. Widths are in cells, so that Chinese fits.

A block is a list of lines. Every line is as wide as its block; whoever builds one sees to that.
"""

from __future__ import annotations

from collections.abc import Iterable

from rich.text import Text

Block = list[Text]


def fit(line: Text, width: int) -> Text:
    """The line cut or padded to exactly `width` cells."""
    line = line.copy()
    line.truncate(max(0, width), overflow="ellipsis", pad=True)
    return line


def ends(left: Text, right: Text, width: int) -> Text:
    """One text at each end of a line; the right one is never cut."""
    return Text.assemble(fit(left, width - right.cell_len), right)


def pile(lines: Iterable[Text], width: int, height: int) -> Block:
    """The lines cut or padded to a block of this size."""
    block = [fit(line, width) for line in lines][:height]
    return block + [Text(" " * width) for _ in range(height - len(block))]


def beside(left: Block, right: Block) -> Block:
    """Two blocks of one height, next to each other."""
    return [Text.assemble(*pair) for pair in zip(left, right, strict=True)]


def framed(
    title: str, lines: Iterable[Text], width: int, height: int, legend: Text | None = None
) -> Block:
    """The lines in a frame with rounded corners, a title at its top left, a legend at its right."""
    inner = pile(lines, width - 4, height - 2)
    rule = width - 2 - len(f"─ {title} ")
    tail = Text.assemble(" ", legend, (" ─", "dim")) if legend else Text()
    top = Text.assemble(
        ("╭─ ", "dim"),
        (title, "bold"),
        (" " + "─" * (rule - tail.cell_len), "dim"),
        tail,
        ("╮", "dim"),
    )
    sides = [Text.assemble(("│ ", "dim"), line, (" │", "dim")) for line in inner]
    return [fit(top, width), *sides, Text("╰" + "─" * (width - 2) + "╯", style="dim")]


def bar(share: float, width: int, style: str) -> Text:
    """How much of a whole is done: thick for that, thin for the rest, to be told without color."""
    full = round(min(max(share, 0.0), 1.0) * width)
    return Text.assemble(("━" * full, style), ("─" * (width - full), "dim"))


def one_line(text: str) -> str:
    """Somebody else's text without line breaks and whatever else moves a cursor."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())
