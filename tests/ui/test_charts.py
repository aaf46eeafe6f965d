"""Tests of charts and series, dot by dot."""

from __future__ import annotations

import math

import pytest

from dpo_cli.run.series import CAPACITY, Series
from dpo_cli.ui.terminal.charts import Canvas, Curve, Level, Mark, draw, smooth, tick_label, ticks


def plain(canvas: Canvas) -> list[str]:
    return [row.plain for row in canvas.rows()]


def test_each_dot_has_its_bit() -> None:
    for x, y, character in [(0, 0, "⠁"), (0, 3, "⡀"), (1, 0, "⠈"), (1, 2, "⠠"), (1, 3, "⢀")]:
        canvas = Canvas(1, 1)
        canvas.dot(x, y, "")
        assert plain(canvas) == [character]


def test_a_line_has_no_holes() -> None:
    canvas = Canvas(4, 2)
    canvas.line((0, 7), (7, 0), "")
    assert plain(canvas) == ["  ⡠⠊", "⡠⠊  "]
    canvas = Canvas(1, 2)
    canvas.line((0, 0), (0, 7), "")
    assert plain(canvas) == ["⡇", "⡇"]


def test_dots_outside_are_not_drawn() -> None:
    canvas = Canvas(1, 1)
    for x, y in [(-1, 0), (2, 0), (0, -1), (0, 4)]:
        canvas.dot(x, y, "")
    assert plain(canvas) == [" "]


def test_a_cell_shows_the_curve_that_was_drawn_last() -> None:
    canvas = Canvas(1, 1)
    canvas.dot(0, 0, "red")
    canvas.dot(1, 3, "blue")
    [row] = canvas.rows()
    assert row.plain == "⢀"
    assert [span.style for span in row.spans] == ["blue"]


def test_a_chart_has_its_size_axis_and_level() -> None:
    curve = Curve([(0, 0.7), (10, 0.5)], "cyan")
    lines = [
        line.plain for line in draw([curve], 24, 9, x_end=10, level=Level(math.log(2), "ln 2"))
    ]
    assert [len(line) for line in lines] == [24] * 9
    assert lines[0].startswith("ln 2 ")
    assert lines[7].startswith(" 0.5 ")
    assert lines[8] == "     0           step 10"


def test_a_chart_without_points_and_with_one_point() -> None:
    assert len(draw([], 20, 5, x_end=0)) == 5
    [_, middle, *_] = draw([Curve([(0, 0.5)], "")], 20, 4, x_end=0)
    assert any("\u2800" < character < "\u2900" for character in middle.plain)


@pytest.mark.parametrize("value", [0.0, 1e-8, 0.6931, -3e5])
def test_a_constant_can_be_drawn(value: float) -> None:
    lines = draw([Curve([(0, value), (5, value)], "")], 30, 6, x_end=5)
    assert {len(line.plain) for line in lines} == {30}


def test_noise_is_not_magnified_beyond_the_least_span() -> None:
    noise = Curve([(0, 0.6931), (5, 0.6932), (10, 0.6931)], "")
    flat = draw([noise], 30, 9, x_end=10, least_span=0.01)
    rows = [k for k, line in enumerate(flat[:-1]) if line.plain[6:].strip()]
    assert len(rows) <= 2


def test_spots_are_drawn_if_they_fit() -> None:
    few = Curve([(k, k) for k in range(3)], "", Mark.SPOTS)
    many = Curve([(k, k) for k in range(40)], "", Mark.SPOTS)
    assert sum(line.plain.count("⣿") for line in draw([few], 40, 9, x_end=2)) == 3
    assert sum(line.plain.count("⣿") for line in draw([many], 40, 9, x_end=39)) == 0


@pytest.mark.parametrize(
    ("low", "high", "count", "labels"),
    [
        (0.48, 0.71, 3, ["0.5", "0.6", "0.7"]),
        (-0.6, 0.3, 2, ["-0.5", "0.0"]),
        (0, 1e-6, 2, ["0", "5e-7", "1.0e-6"]),
        (0, 2e-5, 5, ["0", "5e-6", "1.0e-5", "1.5e-5", "2.0e-5"]),
        (0, 1400, 3, ["0", "500", "1000"]),
        (0.6925, 0.6935, 2, ["0.6925", "0.6930", "0.6935"]),
    ],
)
def test_ticks_are_round(low: float, high: float, count: int, labels: list[str]) -> None:
    values, step = ticks(low, high, count)
    assert [tick_label(value, step) for value in values] == labels


def test_smoothing_keeps_lines_and_means_and_removes_noise() -> None:
    line = [(float(k), 3.0) for k in range(100)]
    assert smooth(line) == [(x, pytest.approx(y)) for x, y in line]
    noisy = [(float(k), 1.0 + (-1) ** k) for k in range(200)]
    assert all(abs(y - 1) < 0.2 for _, y in smooth(noisy)[20:-20])
    assert smooth([]) == []


# --- series -----------------------------------------------------------------------------------


def filled(count: int) -> Series:
    series = Series()
    for step in range(1, count + 1):
        series.add(step, float(step))
    return series


def test_a_short_series_is_exact() -> None:
    assert filled(3).points == [(1, 1), (2, 2), (3, 3)]
    assert (filled(3).mean, Series().mean) == (2, None)


def test_a_long_series_is_bounded_and_keeps_its_mean() -> None:
    series = filled(100_000)
    assert CAPACITY // 2 <= len(series.points) <= CAPACITY
    assert series.mean == pytest.approx(50_000.5)
    assert all(x == pytest.approx(y) for x, y in series.points)
    assert series.points == sorted(series.points)


def test_truncating_a_series_drops_later_points() -> None:
    series = filled(10)
    series.cut(4)
    assert [x for x, _ in series.points] == [1, 2, 3, 4]
    long = filled(5000)
    long.cut(1000)
    assert long.points[-1][0] < 1000 + 5000 / CAPACITY * 2
    long.add(1001, 1.0)


def test_values_that_are_not_finite_are_left_out() -> None:
    series = filled(2)
    series.add(3, math.inf)
    series.add(4, math.nan)
    assert len(series.points) == 2


def test_letters_are_at_the_ends_of_curves_and_do_not_overlap() -> None:
    points = [(0.0, 0.0), (10.0, 1.0)]
    curves = [Curve(points, "cyan", letter="A"), Curve(points, "red", letter="B")]
    low = Curve([(0.0, 0.0), (10.0, 0.0)], "green", letter="C")
    lines = [line.plain for line in draw([*curves, low], 40, 8, x_end=10)]
    assert lines[0].endswith("BA")
    assert lines[6].endswith("C")
    assert sum(line.count(letter) for line in lines for letter in "ABC") == 3
