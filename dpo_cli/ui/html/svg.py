"""Charts as SVG, for HTML pages and as separate files."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dpo_cli.ui.comparison import ComparedRun
from dpo_cli.ui.html.charts import COLORS, Chart, Line, charts_of
from dpo_cli.ui.html.markup import escape_text
from dpo_cli.ui.terminal.charts import tick_label, ticks, value_range

WIDTH, HEIGHT = 380, 236
"""Size of one chart in pixels."""

_LEFT, _TOP, _RIGHT, _BOTTOM = 54, 44, 18, 26
_HEADROOM = 0.05
_Y_TICKS, _X_TICKS = 5, 4
_DASH = 'stroke-dasharray="5 3"'
_MOST_MARKS, _LETTER_HEIGHT = 40, 11
_COLUMNS, _GAP, _MARGIN, _LINE_HEIGHT = 3, 16, 20, 20
_LIGHT = ["#0f6cbd", "#c2185b", "#1b7f4b", "#d1431f", "#7a4fcf", "#8a6d00", "#00838f", "#6d4c41"]
_DARK = ["#5cb3ff", "#ff7eb6", "#5fd38d", "#ff8a65", "#b79cff", "#e0c14f", "#4dd0e1", "#d7a98c"]


def _colors(palette: Sequence[str], ink: str, faint: str, ground: str) -> str:
    lines = "".join(
        f".l{i}{{stroke:{color}}}.chart .d{i}{{fill:{color}}}" for i, color in enumerate(palette)
    )
    return (
        f".chart text{{fill:{ink}}}.chart .faint{{fill:{faint}}}"
        f".grid{{stroke:{faint};stroke-opacity:.25}}.level{{stroke:{faint}}}"
        f".ground{{fill:{ground}}}{lines}"
    )


STYLE = (
    ".chart text{font:11px system-ui,'DejaVu Sans',sans-serif}"
    ".chart .title{font-size:13px;font-weight:600}"
    ".line{fill:none;stroke-width:1.8;stroke-linejoin:round}"
    ".raw{fill:none;stroke-width:.8;stroke-opacity:.35}"
    ".whisker{stroke-width:1;stroke-opacity:.5}"
    + _colors(_LIGHT, "#1b1f24", "#5c6670", "#ffffff")
    + "@media screen and (prefers-color-scheme:dark){"
    + _colors(_DARK, "#e6e9ec", "#9aa4af", "#14171a")
    + "}"
)
"""Style sheet of all charts; follows the dark mode on screens, always light on paper."""
assert len(_LIGHT) == len(_DARK) == COLORS


@dataclass(frozen=True)
class Frame:
    """Mapping from values to pixels."""

    x_end: float
    low: float
    high: float

    @classmethod
    def of(cls, chart: Chart) -> Frame:
        """Return a frame around all curves, intervals and the level."""
        values = [y for line in chart.lines for _, y in line.points]
        values += [y for line in chart.lines for y in line.raw]
        values += [end for line in chart.lines for ends in line.intervals for end in ends]
        if chart.level is not None:
            values.append(chart.level.value)
        low, high = value_range(values, chart.least_span)
        room = (high - low) * _HEADROOM
        return cls(max(chart.x_end, 1.0), low - room, high + room)

    def box(self) -> dict[str, float]:
        """Return plain values; `x_end`, `low`, `high` map to `right`, `bottom`, `top`."""
        box = {"width": WIDTH, "left": _LEFT, "right": WIDTH - _RIGHT}
        return {**box, "top": _TOP, "bottom": HEIGHT - _BOTTOM, **dataclasses.asdict(self)}

    def x(self, step: float) -> float:
        """Return pixels from the left."""
        return _LEFT + step / self.x_end * (WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        """Return pixels from the top."""
        share = (value - self.low) / (self.high - self.low)
        return HEIGHT - _BOTTOM - share * (HEIGHT - _TOP - _BOTTOM)


def chart_markup(chart: Chart) -> str:
    """Return the content of the `<svg>` element of a chart of `WIDTH` x `HEIGHT`."""
    frame = Frame.of(chart)
    parts = [f'<text class="title" x="8" y="16">{escape_text(chart.title)}</text>']
    parts += _axes(chart, frame)
    parts += _legend(chart.lines)
    for line in chart.lines:
        parts += _curve(line, frame)
    parts += _letters(chart.lines, frame)
    return "".join(parts)


def summary(chart: Chart) -> str:
    """Describe a chart in one sentence, for screen readers."""
    parts = []
    for line in chart.lines:
        (first_step, first), (last_step, last) = line.points[0], line.points[-1]
        name = f"{line.letter} {line.name}".strip()
        parts.append(
            f"{name + ' ' if name else ''}from {first:.4g} at {chart.x_name} {first_step:,.0f} "
            f"to {last:.4g} at {chart.x_name} {last_step:,.0f}"
        )
    return f"{chart.title}: {'; '.join(parts)}"


def sheet(runs: Sequence[ComparedRun]) -> str:
    """Return all charts of some runs as one SVG file."""
    charts = charts_of(runs)
    columns = min(_COLUMNS, max(1, len(charts)))
    top = _MARGIN + _LINE_HEIGHT * len(runs)
    width = 2 * _MARGIN + columns * (WIDTH + _GAP) - _GAP
    height = top + math.ceil(len(charts) / columns) * (HEIGHT + _GAP) + _MARGIN
    names = ", ".join(run.name for run in runs)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" class="chart" role="img" width="{width}" '
        f'height="{height}" viewBox="0 0 {width} {height}">',
        f"<title>{escape_text(names)}</title><style>{STYLE}</style>",
        f'<rect class="ground" width="{width}" height="{height}"/>',
    ]
    for i, run in enumerate(runs):
        y = _MARGIN + i * _LINE_HEIGHT + 4
        mark = f'<circle class="d{i % COLORS}" cx="{_MARGIN + 5}" cy="{y - 4}" r="5"/>'
        letter = f"{run.letter}  " if len(runs) > 1 else ""
        words = f"{letter}{run.name}{f' · {run.model}' if run.model else ''}"
        parts.append(
            f'{mark if len(runs) > 1 else ""}<text class="title" x="{_MARGIN + 16}" y="{y}">'
            f"{escape_text(words)}</text>"
        )
    for i, chart in enumerate(charts):
        x = _MARGIN + i % columns * (WIDTH + _GAP)
        y = top + i // columns * (HEIGHT + _GAP)
        parts.append(f'<g transform="translate({x} {y})">{chart_markup(chart)}</g>')
    return "".join([*parts, "</svg>\n"])


def _axes(chart: Chart, frame: Frame) -> Iterator[str]:
    right, bottom = WIDTH - _RIGHT, HEIGHT - _BOTTOM
    values, step = ticks(frame.low, frame.high, _Y_TICKS)
    level_y = None if chart.level is None else frame.y(chart.level.value)
    for value in values:
        y = frame.y(value)
        yield f'<path class="grid" d="M{_LEFT} {y:.1f}H{right}"/>'
        below = 23 if chart.level is not None and chart.level.number else 11
        if level_y is None or not -11 <= y - level_y <= below:
            yield _label(tick_label(value, step), _LEFT - 6, y + 4, "end")
    if chart.level is not None and level_y is not None:
        yield f'<path class="level" {_DASH} d="M{_LEFT} {level_y:.1f}H{right}"/>'
        yield _label(chart.level.label, _LEFT - 6, level_y + 4, "end")
        if chart.level.number:
            yield _label(chart.level.number, _LEFT - 6, level_y + 16, "end")
    steps, step = ticks(0.0, frame.x_end, _X_TICKS)
    for value in steps:
        yield f'<path class="grid" d="M{frame.x(value):.1f} {bottom}v4"/>'
        text = f"{value:,.0f}" if step >= 1 else tick_label(value, step)
        yield _label(text, frame.x(value), bottom + 17, "middle")
    yield _label(chart.x_name, _LEFT - 6, bottom + 17, "end")


def _label(text: str, x: float, y: float, anchor: str) -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text class="faint" {place}>{escape_text(text)}</text>'


def _legend(lines: Sequence[Line]) -> Iterator[str]:
    """Yield a sample and the name of each curve; curves of several runs share one entry."""
    x = float(_LEFT)
    named: dict[str, Line] = {}
    for line in lines:
        if line.name:
            named.setdefault(line.name, line)
    if len(named) < 2 and not any(line.is_held_out for line in lines):
        return
    for name, line in named.items():
        dash = f" {_DASH}" if line.is_dashed else ""
        ink = "level" if line.letter else f"l{line.color}"
        yield f'<path class="line {ink}"{dash} d="M{x} 30h18"/>'
        if line.is_held_out:
            dot = "faint" if line.letter else f"d{line.color}"
            yield f'<circle class="{dot}" cx="{x + 9}" cy="30" r="3"/>'
        yield _label(name, x + 23, 34, "start")
        x += 34 + 6.2 * len(name)


def _curve(line: Line, frame: Frame) -> Iterator[str]:
    if line.raw:
        raw = [(step, value) for (step, _), value in zip(line.points, line.raw, strict=True)]
        yield f'<path class="raw l{line.color}" d="{_path(raw, frame)}"/>'
    for (step, _), (low, high) in zip(line.points, line.intervals, strict=False):
        x = frame.x(step)
        span = f"M{x:.1f} {frame.y(low):.1f}V{frame.y(high):.1f}"
        yield f'<path class="whisker l{line.color}" d="{span}"/>'
    dash = f" {_DASH}" if line.is_dashed else ""
    yield f'<path class="line l{line.color}"{dash} d="{_path(line.points, frame)}"/>'
    if (line.is_held_out and len(line.points) <= _MOST_MARKS) or len(line.points) == 1:
        for step, value in line.points:
            x, y = frame.x(step), frame.y(value)
            yield f'<circle class="d{line.color}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>'


def _letters(lines: Sequence[Line], frame: Frame) -> Iterator[str]:
    """Yield the letter at the end of each run's curves, moved apart where they overlap."""
    ends = {}
    for line in lines:
        if line.letter:
            ends[line.letter] = (frame.y(line.points[-1][1]), line.color)
    above = -math.inf
    for i, (letter, (y, color)) in enumerate(sorted(ends.items(), key=lambda end: end[1])):
        lowest = HEIGHT - _BOTTOM + 4 - _LETTER_HEIGHT * (len(ends) - 1 - i)
        above = max(min(y + 4, lowest), above + _LETTER_HEIGHT)
        yield f'<text class="d{color}" x="{WIDTH - 13}" y="{above:.1f}">{letter}</text>'


def _path(points: Sequence[tuple[float, float]], frame: Frame) -> str:
    places = [f"{frame.x(step):.1f} {frame.y(value):.1f}" for step, value in points]
    return "M" + "L".join(places)
