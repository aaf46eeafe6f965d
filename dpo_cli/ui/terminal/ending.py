"""Final lines of a run, printed after the panel has closed."""

from __future__ import annotations

from pathlib import Path

from rich.text import Text

from dpo_cli.formatting import format_duration
from dpo_cli.run.events import Completed, Failed, Stopped, WorkerEnded
from dpo_cli.run.exit_reason import exit_text, rank_ending
from dpo_cli.run.view import RunView
from dpo_cli.ui.terminal.plain import alert_lines, completed_lines, stopped_lines


def ending_lines(view: RunView, designation: str, directory: Path) -> list[Text]:
    """Return alerts, result and ending of a run; `failure` returns its error."""
    lines = [line for alert in view.alerts.values() for line in alert_lines(alert)]
    if (start := view.held_out_start) and (now := view.held_out) and now.step > start.step:
        before, after = start.metrics, now.metrics
        lines.append(
            Text(
                f"held-out: loss {before['loss']:.4f} -> {after['loss']:.4f}, accuracy "
                f"{before['rewards/accuracies']:.2f} -> {after['rewards/accuracies']:.2f}, "
                f"in {format_duration(view.elapsed_seconds(view.time))}"
            )
        )
    match view.ending:
        case Completed() as completed:
            lines += completed_lines(completed, designation, directory, view)
        case Stopped() as stopped:
            lines += stopped_lines(stopped, designation)
    return lines


def failure(view: RunView) -> tuple[str, str] | None:
    """Return the error of a failed run and its remedy; None if the run did not fail."""
    match view.ending:
        case Failed() as failed:
            return ": ".join([failed.message, *failed.details]), failed.remedy
        case WorkerEnded() if view.lost_ranks:
            return "; ".join(map(rank_ending, view.lost_ranks)), ""
        case WorkerEnded() as end:
            how = exit_text(-end.signal if end.signal else end.exit_code)
            return f"the worker {how}; its output is in worker.log", ""
    return None
