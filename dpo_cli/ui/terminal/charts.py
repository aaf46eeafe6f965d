"""Charts made of braille characters, each a grid of 2 x 4 dots."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto

from rich.cells import cell_len
from rich.text import Text

from dpo_cli.run.series import Point

_BRAILLE = 0x2800
_DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))
"""Bit of a dot in the Unicode code point, by column and row within its cell."""
_ROWS_PER_TICK = 4
_DASH, _DASH_PERIOD = 3, 6
_SMOOTHING = 0.04
"""Range of the smoothing, as a share of the curve."""
FEW_POINTS = 24
"""Maximum number of points of a curve that is not smoothed."""


class Mark(Enum):
    """Style in which a curve is drawn."""

    LINE = auto()
    DOTS = auto()
    SPOTS = auto()
    """Line with a full cell at each point; differs from LINE without color."""


@dataclass(frozen=True)
class Curve:
    """Points in ascending order of x, and their style."""

    points: Sequence[Point]
    style: str
    mark: Mark = Mark.LINE
    letter: str = ""
    """Written at the end of the curve; identifies the curve without color."""


@dataclass(frozen=True)
class Level:
    """Dashed horizontal line with a label on the axis.

    `number` is the value in digits, if the label has none; it is written below the label.
    """

    value: float
    label: str
    number: str = ""


class Canvas:
    """Grid of cells on which curves are drawn, later ones over earlier ones.

    A terminal cell has one foreground color, so it shows one curve: drawing in another style
    erases the dots that are in the cell.
    """

    def __init__(self, columns: int, rows: int) -> None:
        self.width, self.height = columns * 2, rows * 4
        self._cells = [[0] * columns for _ in range(rows)]
        self._styles = [[""] * columns for _ in range(rows)]
        self._letters: dict[tuple[int, int], tuple[str, str]] = {}

    def dot(self, x: int, y: int, style: str) -> None:
        """Set the dot `x` from the left and `y` from the top; ignore dots outside the canvas."""
        if not (0 <= x < self.width and 0 <= y < self.height):
            return
        row, column = y // 4, x // 2
        if self._styles[row][column] != style:
            self._styles[row][column], self._cells[row][column] = style, 0
        self._cells[row][column] |= _DOTS[x % 2][y % 4]

    def line(self, start: tuple[int, int], end: tuple[int, int], style: str) -> None:
        """Draw a straight line between two dots."""
        (x0, y0), (x1, y1) = start, end
        length = max(abs(x1 - x0), abs(y1 - y0), 1)
        for i in range(length + 1):
            self.dot(x0 + round(i * (x1 - x0) / length), y0 + round(i * (y1 - y0) / length), style)

    def spot(self, x: int, y: int, style: str) -> None:
        """Fill the whole cell of a dot."""
        self.dot(x, y, style)
        self._cells[min(y // 4, len(self._cells) - 1)][min(x // 2, len(self._cells[0]) - 1)] = 0xFF

    def letter(self, x: int, y: int, letter: str, style: str) -> bool:
        """Write a letter into the cell of a dot; return False if it holds another letter."""
        place = min(y // 4, len(self._cells) - 1), min(x // 2, len(self._cells[0]) - 1)
        return self._letters.setdefault(place, (letter, style)) == (letter, style)

    def rows(self) -> list[Text]:
        """Return the drawing, one text per row."""
        rows = [
            _styled(cells, styles) for cells, styles in zip(self._cells, self._styles, strict=True)
        ]
        for (row, column), (letter, style) in self._letters.items():
            text = rows[row]
            rows[row] = Text.assemble(text[:column], (letter, f"{style} bold"), text[column + 1 :])
        return rows


def draw(
    curves: Sequence[Curve],
    width: int,
    height: int,
    *,
    x_end: float,
    x_name: str = "step",
    level: Level | None = None,
    least_span: float = 0.0,
) -> list[Text]:
    """Draw a chart with its axes: `height` lines of `width` cells.

    Args:
        curves: drawn in this order, so that later ones cover earlier ones.
        width, height: size in cells.
        x_end: end of the x axis, which starts at 0.
        x_name: unit of the x axis.
        level: always inside the range of y.
        least_span: minimum range of y, so that noise around a constant does not fill the chart.
    """
    values = [y for curve in curves for _, y in curve.points]
    low, high = value_range(values if level is None else [*values, level.value], least_span)
    rows = max(1, height - 1)
    labels = _tick_labels(low, high, rows, level)
    gutter = max(map(cell_len, labels.values()), default=0) + 1
    canvas = Canvas(max(1, width - gutter), rows)

    def place(point: Point) -> tuple[int, int]:
        # A damaged stream may have steps outside the range, and a line to them too many dots.
        x = min(max(point[0] / x_end, 0.0), 1.0) if x_end > 0 else 0.0
        y = (point[1] - low) / (high - low)
        return round(x * (canvas.width - 1)), round((1 - y) * (canvas.height - 1))

    if level is not None:
        _, y = place((0, level.value))
        for x in range(canvas.width):
            if x % _DASH_PERIOD < _DASH:
                canvas.dot(x, y, "dim")
    for curve in curves:
        _draw_curve(canvas, [place(point) for point in curve.points], curve)
    for curve in curves:
        _write_letter(canvas, [place(point) for point in curve.points], curve)

    lines = [
        Text.assemble((labels.get(row, "").rjust(gutter - 1) + " ", "dim"), text)
        for row, text in enumerate(canvas.rows())
    ]
    end = f"{x_name} {x_end:,.0f}"
    axis = " " * gutter + "0" + end.rjust(width - gutter - 1)
    return [*lines, Text(axis, style="dim")][:height]


def smooth(points: Sequence[Point]) -> list[Point]:
    """Smooth a curve: at each point the mean of all points, weighted by exp(-distance / range).

    The range is a fixed share of the curve, so that a long run is smoothed more. Two passes of an
    exponential filter, one from each side, take O(n). Both count the point itself, which is
    therefore subtracted once.
    """
    decay = math.exp(-1 / max(2.0, _SMOOTHING * len(points)))
    values = [y for _, y in points]
    before, after = _decaying_sums(values, decay), _decaying_sums(values[::-1], decay)[::-1]
    return [
        (x, (left[0] + right[0] - y) / (left[1] + right[1] - 1))
        for (x, y), left, right in zip(points, before, after, strict=True)
    ]


def _decaying_sums(values: Sequence[float], decay: float) -> list[tuple[float, float]]:
    """Return at each value the weighted sum up to it, and the sum of the weights."""
    total, weight, sums = 0.0, 0.0, []
    for value in values:
        total, weight = total * decay + value, weight * decay + 1
        sums.append((total, weight))
    return sums


def ticks(low: float, high: float, count: int) -> tuple[list[float], float]:
    """Return up to about `count` round numbers within a range, and the distance between them."""
    rough = (high - low) / max(1, count)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)], step


def tick_label(value: float, step: float) -> str:
    """Format a tick with the decimals needed to distinguish it from the next tick."""
    decimals = max(0, -math.floor(math.log10(step)))
    if decimals > 4 or abs(value) >= 1e5:
        if abs(value) < step / 2:
            return "0"
        of_value, of_step = (math.floor(math.log10(x) + 1e-9) for x in (abs(value), step))
        return f"{value:.{max(0, of_value - of_step)}e}".replace("e-0", "e-")
    return f"{value:.{decimals}f}"


def value_range(values: Sequence[float], least_span: float) -> tuple[float, float]:
    """Return the smallest and largest value, widened to at least `least_span`."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    # Some range must remain even for a constant: the caller divides by it.
    missing = max(least_span, 1e-3 * max(abs(low), abs(high)), 1e-12) - (high - low)
    if missing > 0:
        low, high = low - missing / 2, high + missing / 2
    return low, high


def _tick_labels(low: float, high: float, rows: int, level: Level | None) -> dict[int, str]:
    """Return the label of each row; the label of the level replaces ticks next to it."""

    def row_of(value: float) -> int:
        return round((high - value) / (high - low) * (rows * 4 - 1)) // 4

    values, step = ticks(low, high, max(1, rows // _ROWS_PER_TICK))
    labels = {row_of(value): tick_label(value, step) for value in values}
    if level is not None:
        row = row_of(level.value)
        labels = {k: label for k, label in labels.items() if abs(k - row) > 1}
        labels[row] = level.label
        if level.number and rows > 1:
            labels[row + 1 if row + 1 < rows else row - 1] = level.number
    return labels


def _draw_curve(canvas: Canvas, dots: list[tuple[int, int]], curve: Curve) -> None:
    if curve.mark is Mark.DOTS or len(dots) == 1:
        for x, y in dots:
            canvas.dot(x, y, curve.style)
    else:
        for start, end in itertools.pairwise(dots):
            canvas.line(start, end, curve.style)
    if curve.mark is Mark.SPOTS and len(dots) <= canvas.width // 8:
        for x, y in dots:
            canvas.spot(x, y, curve.style)


def _write_letter(canvas: Canvas, dots: list[tuple[int, int]], curve: Curve) -> None:
    """Write the letter at the end of the curve, or left of letters that are already there."""
    if curve.letter and dots:
        end, y = dots[-1]
        for x in range(end, -1, -2):
            if canvas.letter(x, y, curve.letter, curve.style):
                return


def _styled(cells: Sequence[int], styles: Sequence[str]) -> Text:
    """Join the cells of a row; blanks keep the previous style, which saves escape sequences."""
    text, run, style = Text(), "", ""
    for cell, new_style in zip(cells, styles, strict=True):
        if cell and new_style != style:
            text.append(run, style)
            run, style = "", new_style
        run += chr(_BRAILLE + cell) if cell else " "
    return text.append(run, style)
