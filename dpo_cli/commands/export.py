"""`dpo export`: write trained weights for MiniMind or transformers."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from dpo_cli.api.run import Run
from dpo_cli.commands.console import plain_console
from dpo_cli.commands.options import BestOption, RunArgument, RunsDirOption, SetOption
from dpo_cli.errors import DpoError, UsageError
from dpo_cli.formatting import format_duration
from dpo_cli.run.directory import RunDirectory, runs_root
from dpo_cli.run.lookup import find_run
from dpo_cli.ui.terminal.console import SafeConsole
from dpo_cli.ui.terminal.export import export_lines, held_out_lines, try_lines
from dpo_cli.ui.terminal.progress import PhaseBar

if TYPE_CHECKING:
    from dpo_cli.export.export import ExportReport


SOON_SECONDS = 10.0
"""The held-out pairs are evaluated without --evaluate if this takes less."""


class Dtype(StrEnum):
    """Precision of a weights file."""

    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"
    FLOAT32 = "float32"


class Format(StrEnum):
    """MiniMind weights file, Hugging Face directory, or directory of an adapter."""

    PTH = "pth"
    HF = "hf"
    PEFT = "peft"


class RoundingMode(StrEnum):
    """Rounding of weights to half precision."""

    NEAREST = "nearest"
    STOCHASTIC = "stochastic"


def export(
    run_name: RunArgument = None,
    to: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="Write to this file or directory. Default: the profile's model.out_dir.",
            show_default=False,
        ),
    ] = None,
    form: Annotated[
        Format | None,
        typer.Option(
            "--format",
            metavar="|".join(Format),
            help="Write a MiniMind weights file (pth), a Hugging Face directory that plain "
            "transformers loads (hf), or the adapter of a run with [lora] for peft (peft). "
            "Default: the format of the starting weights, with the adapter merged.",
            show_default=False,
        ),
    ] = None,
    dtype: Annotated[
        Dtype | None,
        typer.Option(
            metavar="|".join(Dtype),
            help="Set the precision of the file. Default: the profile's.",
            show_default=False,
        ),
    ] = None,
    rounding: Annotated[
        RoundingMode | None,
        typer.Option(
            metavar="|".join(RoundingMode),
            help="Round to the nearest half-precision number, or at random to one of the two "
            "neighbors, which keeps small updates on average. Default: stochastic for bfloat16 "
            "weights, else nearest.",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=0,
            help="Set the seed of stochastic rounding. Default: the profile's train.seed.",
            show_default=False,
        ),
    ] = None,
    evaluate: Annotated[
        bool | None,
        typer.Option(
            "--evaluate/--no-evaluate",
            help="Evaluate the file and the checkpoint on the held-out pairs. Default: yes if it "
            "takes less than 10 seconds.",
            show_default=False,
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace a file that this run did not write.")
    ] = False,
    best: BestOption = False,
    settings: SetOption = None,
    runs_dir: RunsDirOption = None,
) -> None:
    """Export the newest weights of a run for MiniMind or transformers.

    The file is loaded back. Its weights are compared with the starting weights, and its log-probs
    with the checkpoint's on real pairs, so that you see the cost of half precision. Without RUN,
    export the newest run.

    Example: `dpo export dense --to rlhf_512.pth`
    """
    if seed is not None and rounding is not RoundingMode.STOCHASTIC:
        raise UsageError("--seed: only stochastic rounding is random", "Add --rounding stochastic.")
    console = plain_console()
    run = find_run(runs_root(runs_dir), run_name)
    with console.status(f"exporting {run.designation}"):
        report = Run(run).export(
            to,
            format=form.value if form else None,
            dtype=dtype.value if dtype else None,
            rounding=rounding.value if rounding else None,
            seed=seed,
            best=best,
            force=force,
            settings=settings,
        )
    for line in export_lines(report):
        console.print(line, soft_wrap=not console.is_terminal)  # long lines break between words
    _compare_held_out(console, run, report, settings or (), evaluate)
    if report.try_command:
        for line in try_lines(report.try_command):
            console.print(line)


def _compare_held_out(
    console: Console,
    run: RunDirectory,
    report: ExportReport,
    settings: Sequence[str],
    is_wanted: bool | None,
) -> None:
    """Evaluate file and checkpoint on the held-out pairs, or print the time that it would take."""
    from dpo_cli.inference.evaluate import evaluate_held_out, evaluation_seconds  # loads torch

    seconds = evaluation_seconds(run)
    if seconds is None or is_wanted is False:
        return
    is_training = run.holder() is not None
    if is_wanted is None and (is_training or 2 * seconds > SOON_SECONDS):
        console.print(
            f"held-out pairs: not evaluated; --evaluate takes about {format_duration(2 * seconds)}"
        )
        return
    try:
        with PhaseBar(SafeConsole(stderr=True)) as bar:
            evaluation = evaluate_held_out(run, settings, [report.state, report.exported], bar)
    except DpoError as error:  # the file is written and verified
        console.print(f"held-out pairs: not evaluated: {error.message}")
        return
    for line in held_out_lines(evaluation):
        console.print(line, soft_wrap=not console.is_terminal)
