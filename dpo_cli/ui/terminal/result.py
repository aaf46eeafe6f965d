"""Lines about the end of a run: result, harm that the run did, and the next command."""

from __future__ import annotations

from pathlib import Path

from rich.text import Text

from dpo_cli.formatting import format_count, format_duration
from dpo_cli.profile.text import show_path
from dpo_cli.run.events import Completed, Stopped
from dpo_cli.run.verdict import is_best_earlier, verdict_of
from dpo_cli.run.view import RunView
from dpo_cli.shell import dpo_command


def stopped_lines(event: Stopped, designation: str) -> list[Text]:
    """Return where a run stopped, and the command to resume it."""
    where = (
        f"after step {event.optimizer_step}; everything is saved"
        if event.optimizer_step
        else "before the first step"
    )
    return [Text(f"{event.reason} {where}"), _command("resume", dpo_command("resume", designation))]


def completed_lines(
    event: Completed, designation: str, directory: Path, view: RunView
) -> list[Text]:
    """Return the result of a completed run, harm that it did, and the command to export it."""
    return [
        Text.assemble(
            ("done", "bold green"),
            f": {format_count(event.optimizer_step, 'step')}"
            f" in {format_duration(view.elapsed_seconds(view.time))}, "
            f"weights in {directory / event.weights}",
        ),
        *([Text(f"      {event.reason}")] if event.reason else []),
        *verdict_lines(view),
        *sample_lines(view, designation),
        export_line(view, designation).append(_export_adds(view), "dim"),
    ]


def verdict_lines(view: RunView) -> list[Text]:
    """Return the harm that a run did, in red, and what to try."""
    verdict = verdict_of(view)
    if verdict is None:
        return []
    return [
        Text.assemble(("worse: ", "bold red"), (verdict.message, "red")),
        Text.assemble(("   help: ", "bold cyan"), verdict.remedy),
    ]


def sample_lines(view: RunView, designation: str) -> list[Text]:
    """Return the command that shows the answers of a run; empty if it wrote none."""
    if view.sampled is None:
        return []
    return [_command("answers", dpo_command("show", designation, "--samples"))]


def export_line(view: RunView, designation: str) -> Text:
    """Return the command that exports a run; its best weights if they are not the last ones."""
    if not is_best_earlier(view):
        return _command("export", dpo_command("export", designation))
    assert view.best is not None
    line = _command("export", dpo_command("export", designation, "--best"))
    return line.append(f"  (step {view.best.optimizer_step:,})", "dim")


def _export_adds(view: RunView) -> str:
    """Return what the export adds to the weights in the run directory, which has the same name."""
    out_dir = view.plan.setting("model.out_dir") if view.plan else None
    place = f"to {show_path(Path(out_dir))}/, " if out_dir else ""
    return f"  ({place}loaded back and compared)"


def _command(purpose: str, command: str) -> Text:
    return Text.assemble((f"{purpose}: ", "dim"), (command, "bold"))
