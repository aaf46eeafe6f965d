"""Blocks of text of a fixed size: frames, columns and bars.

A block is a list of lines of equal width. Widths are counted in terminal cells, not in characters:
a Chinese character takes two cells.
"""

from __future__ import annotations

from collections.abc import Iterable

from rich.text import Text

Block = list[Text]


def fit(line: Text, width: int) -> Text:
    """Cut or pad a line to exactly `width` cells."""
    line = line.copy()
    line.truncate(max(0, width), overflow="ellipsis", pad=True)
    return line


def justify(left: Text, right: Text, width: int) -> Text:
    """Place two texts at the two ends of a line; only the left one is cut."""
    return Text.assemble(fit(left, width - right.cell_len), right)


def fit_block(lines: Iterable[Text], width: int, height: int) -> Block:
    """Cut or pad lines to a block of this size."""
    block = [fit(line, width) for line in lines][:height]
    return block + [Text(" " * width) for _ in range(height - len(block))]


def beside(left: Block, right: Block) -> Block:
    """Place two blocks of the same height side by side."""
    return [Text.assemble(*pair) for pair in zip(left, right, strict=True)]


def draw_frame(
    title: str, lines: Iterable[Text], width: int, height: int, legend: Text | None = None
) -> Block:
    """Draw a frame around lines, with a title at the top left and a legend at the top right."""
    inner = fit_block(lines, width - 4, height - 2)
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
    """Draw a progress bar: thick for the done part, thin for the rest, readable without color."""
    full = round(min(max(share, 0.0), 1.0) * width)
    return Text.assemble(("━" * full, style), ("─" * (width - full), "dim"))
