"""`dpo export`: the trained weights as other tools load them."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from dpo_cli.commands.console import plain_console
from dpo_cli.commands.options import RunArgument, RunsDirOption, SetOption
from dpo_cli.errors import DpoError, UsageError
from dpo_cli.formatting import format_duration
from dpo_cli.run.directory import RunDirectory, runs_root
from dpo_cli.run.lookup import find_run
from dpo_cli.ui.terminal.export import export_lines, held_out_line
from dpo_cli.ui.terminal.progress import PhaseBar

if TYPE_CHECKING:
    from dpo_cli.export.export import ExportReport


SOON_SECONDS = 60.0
"""Scoring the held-out pairs is no question where it takes less."""


class Dtype(StrEnum):
    """The precisions a file can have."""

    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"
    FLOAT32 = "float32"


class Format(StrEnum):
    """What is written: MiniMind's file, or a Hugging Face directory."""

    PTH = "pth"
    HF = "hf"


class RoundingMode(StrEnum):
    """How a weight becomes a number of the file."""

    NEAREST = "nearest"
    STOCHASTIC = "stochastic"


def export(
    run_name: RunArgument = None,
    to: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="Where to write; else into the profile's model.out_dir, where MiniMind looks.",
            show_default=False,
        ),
    ] = None,
    form: Annotated[
        Format | None,
        typer.Option(
            "--format",
            metavar="|".join(Format),
            help="MiniMind's file, or a Hugging Face directory that plain transformers loads; else "
            "as the model came.",
            show_default=False,
        ),
    ] = None,
    dtype: Annotated[
        Dtype | None,
        typer.Option(
            metavar="|".join(Dtype),
            help="The file's precision; else the profile's.",
            show_default=False,
        ),
    ] = None,
    rounding: Annotated[
        RoundingMode,
        typer.Option(
            metavar="|".join(RoundingMode),
            help="To the nearest number of a half-precision file; or to either neighbour, the "
            "nearer the likelier, which keeps small updates in the mean.",
        ),
    ] = RoundingMode.NEAREST,
    seed: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=0,
            help="For stochastic rounding; else the profile's train.seed.",
            show_default=False,
        ),
    ] = None,
    evaluate: Annotated[
        bool | None,
        typer.Option(
            "--evaluate/--no-evaluate",
            help="Score the held-out pairs with the file and with the training state; else done "
            "where it takes less than a minute.",
            show_default=False,
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Write over a file that is not this run's.")
    ] = False,
    best: Annotated[
        bool,
        typer.Option("--best", help="The state with the lowest held-out loss, not the newest."),
    ] = False,
    settings: SetOption = None,
    runs_dir: RunsDirOption = None,
) -> None:
    """Write a run's newest weights for MiniMind or as a Hugging Face directory, and say what that
    has of the training.

    It is loaded back; its weights are compared with the start's and its log-probs with the
    training state's on real pairs: what half precision costs is printed. Without RUN it is the
    newest.

    Example: `dpo export dense --to rlhf_512.pth`
    """
    if seed is not None and rounding is not RoundingMode.STOCHASTIC:
        raise UsageError("--seed: only stochastic rounding draws", "add --rounding stochastic")
    console = plain_console()
    run = find_run(runs_root(runs_dir), run_name)
    with console.status(f"exporting {run.designation}"):
        from dpo_cli.export.export import export_run  # imports torch: seconds

        report = export_run(
            run,
            to,
            dtype,
            force,
            settings or (),
            rounding.value,
            seed,
            best=best,
            export_format=form.value if form else None,
        )
    for line in export_lines(report):
        console.print(line)
    _compare_held_out(console, run, report, settings or (), evaluate)
    if report.try_command:
        console.print(f"try it: {report.try_command}")


def _compare_held_out(
    console: Console,
    run: RunDirectory,
    report: ExportReport,
    settings: Sequence[str],
    is_wanted: bool | None,
) -> None:
    """Score the run's held-out pairs where that is wanted, or done soon; else say what it takes."""
    from dpo_cli.inference.held_out import evaluation_seconds, score_held_out

    seconds = evaluation_seconds(run)
    if seconds is None or is_wanted is False:
        return
    is_training = run.holder() is not None
    if is_wanted is None and (is_training or 2 * seconds > SOON_SECONDS):
        console.print(
            f"held-out pairs: not scored; --evaluate takes about {format_duration(2 * seconds)}"
        )
        return
    try:
        with PhaseBar(Console(stderr=True)) as bar:
            weights = [report.exported, report.state]
            in_file, in_state = score_held_out(run, settings, weights, bar)
    except DpoError as error:  # the file is written and sound
        console.print(f"held-out pairs: not scored: {error.message}")
        return
    console.print(held_out_line(in_file, in_state))
