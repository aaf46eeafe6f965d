"""Charts of the HTML report, as data."""

from __future__ import annotations

from pathlib import Path

from dpo_cli.commands.compared_runs import compared_run
from dpo_cli.run.events import history
from dpo_cli.ui.html.charts import Line, charts_of
from tests.support import story


def accuracy_curve(root: Path, *events: object) -> tuple[Line, tuple[float, float]]:
    """The bars show the held-out accuracy, and the interval in the report."""
    run = story.write(root, "plain", *events)  # type: ignore[arg-type]
    compared = compared_run("A", run, history(run.events_path))
    accuracy = next(chart for chart in charts_of([compared]) if chart.title == "accuracy")
    assert compared.accuracy is not None
    return next(line for line in accuracy.lines if line.is_held_out), compared.accuracy[1]


def test_the_bars_of_the_accuracy_are_the_measured_intervals(tmp_path: Path) -> None:
    line, interval = accuracy_curve(tmp_path, *story.whole())
    assert len(line.intervals) == len(line.points) == 8
    assert line.intervals[-1] == interval
