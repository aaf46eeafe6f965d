"""Final lines of a run, printed after the panel has closed."""

from __future__ import annotations

from pathlib import Path

from rich.text import Text

from dpo_cli.formatting import format_number
from dpo_cli.paired import MeanEstimate
from dpo_cli.run.events import ACCURACY, RANKING, Completed, Failed, Stopped, WorkerEnded
from dpo_cli.run.exit_reason import exit_text, rank_ending
from dpo_cli.run.view import RunView
from dpo_cli.ui.significance import ACCURACY_MEANING, RANKING_MEANING, difference
from dpo_cli.ui.terminal.plain import alert_lines, titled_alerts
from dpo_cli.ui.terminal.result import completed_lines, stopped_lines


def ending_lines(
    view: RunView, designation: str, directory: Path, loss_change: MeanEstimate | None
) -> list[Text]:
    """Return alerts, result and ending of a run; `failure` returns its error.

    Args:
        view: state of the run.
        designation: name of the run on the command line.
        directory: the run's directory.
        loss_change: change of the held-out loss, pair by pair; see `dpo_cli.run.held_out_scores`.
    """
    lines = [line for title, alert in titled_alerts(view) for line in alert_lines(alert, title)]
    lines += held_out_lines(view, loss_change)
    match view.ending:
        case Completed() as completed:
            lines += completed_lines(completed, designation, directory, view)
        case Stopped() as stopped:
            lines += stopped_lines(stopped, designation)
    return lines


def held_out_lines(view: RunView, loss_change: MeanEstimate | None) -> list[Text]:
    """Return the held-out metrics before and after training; empty if both are not known."""
    if (ends := view.held_out_change) is None:
        return []
    start, now = ends
    by = f", {difference(loss_change, '+.4f')}" if loss_change else ""
    before, after = start.metrics, now.metrics
    # A policy that equals its reference has no accuracy to compare with.
    earlier = f"{before[ACCURACY]:.2f} -> " if ACCURACY in before else ""
    ranking, meanings = "", []
    if {ACCURACY, RANKING} <= after.keys():
        earlier_ranking = f"{before[RANKING]:.2f} -> " if RANKING in before else ""
        ranking = f", ranking {earlier_ranking}{after[RANKING]:.2f}"
        meanings = [ACCURACY_MEANING, RANKING_MEANING]
    # A run that was stopped may have trained on after its last evaluation.
    where = f" after step {now.optimizer_step:,}" if now.step < view.step else ""
    return [
        Text(
            f"held-out{where}: loss {before['loss']:.4f} -> {after['loss']:.4f}{by}\n"
            f"          accuracy {earlier}{format_number(after.get(ACCURACY), '.2f')}{ranking}"
        ),
        *(Text(f"  {meaning}", "dim") for meaning in meanings),
    ]


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
