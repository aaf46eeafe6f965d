"""`dpo export`: write trained weights for MiniMind, transformers or llama.cpp."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console

from dpo_cli.api.run import Run
from dpo_cli.commands.console import say
from dpo_cli.commands.options import BestOption, RunArgument, RunsDirOption, SetOption
from dpo_cli.errors import DpoError, UsageError
from dpo_cli.export.gguf.quantizations import (
    DEFAULT_QUANTIZATIONS,
    QUANTIZATIONS,
    parse_quantizations,
)
from dpo_cli.formatting import format_duration
from dpo_cli.run.directory import RunDirectory, runs_root
from dpo_cli.run.lookup import find_saved_run
from dpo_cli.ui.terminal.console import SafeConsole, line_console
from dpo_cli.ui.terminal.export import export_lines, held_out_lines, try_lines
from dpo_cli.ui.terminal.gguf import file_table, gguf_lines, gguf_try_lines, recommendation_line
from dpo_cli.ui.terminal.progress import PhaseBar

if TYPE_CHECKING:
    from dpo_cli.export.gguf.export import GgufReport
    from dpo_cli.inference.evaluate import Evaluation
    from dpo_cli.models.convert import StateDict


SOON_SECONDS = 10.0
"""The held-out pairs are evaluated without --evaluate if this takes less."""


class Dtype(StrEnum):
    """Precision of a weights file."""

    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"
    FLOAT32 = "float32"


class Format(StrEnum):
    """MiniMind file, Hugging Face directory, directory of an adapter or of GGUF files."""

    PTH = "pth"
    HF = "hf"
    PEFT = "peft"
    GGUF = "gguf"


_TORCH_FORMATS: Mapping[Format, Literal["pth", "hf", "peft"]] = {
    Format.PTH: "pth",
    Format.HF: "hf",
    Format.PEFT: "peft",
}


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
            help="Write to this file or directory. Default: a name in the profile's "
            "model.out_dir, or in the run.",
            show_default=False,
        ),
    ] = None,
    form: Annotated[
        Format | None,
        typer.Option(
            "--format",
            metavar="|".join(Format),
            help="Write a MiniMind weights file (pth), a Hugging Face directory that plain "
            "transformers loads (hf), the adapter of a run with [lora] (peft), or a directory of "
            "GGUF files for llama.cpp and Ollama (gguf). Default: the format of the starting "
            "weights, with an adapter merged.",
            show_default=False,
        ),
    ] = None,
    quantization: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help=f"Write one GGUF file in each of these formats: {', '.join(QUANTIZATIONS)}. "
            f"Default: {','.join(DEFAULT_QUANTIZATIONS)}.",
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
    """Export the newest weights of a run for MiniMind, transformers, llama.cpp or Ollama.

    The file is loaded back. Its weights are compared with the starting weights, and its log-probs
    with the checkpoint's on real pairs, so that you see the cost of half precision. Without RUN,
    export the newest run.

    Example: `dpo export dense --to rlhf_512.pth`
    """
    if seed is not None and rounding is not RoundingMode.STOCHASTIC:
        raise UsageError("--seed: only stochastic rounding is random", "Add --rounding stochastic.")
    console = line_console()
    run = find_saved_run(runs_root(runs_dir), run_name, say)
    if form is Format.GGUF:
        _refuse_precision(dtype, rounding)
        with console.status(f"exporting {run.designation}"):
            gguf = Run(run).export(
                to,
                format="gguf",
                quantization=parse_quantizations(quantization),
                best=best,
                force=force,
                settings=settings,
            )
        _show_gguf(console, run, gguf, settings or (), evaluate)
        return
    if quantization is not None:
        raise UsageError("--quantization: only GGUF files are quantized", "Add --format gguf.")
    with console.status(f"exporting {run.designation}"):
        report = Run(run).export(
            to,
            format=None if form is None else _TORCH_FORMATS[form],
            dtype=dtype.value if dtype else None,
            rounding=rounding.value if rounding else None,
            seed=seed,
            best=best,
            force=force,
            settings=settings,
        )
    for line in export_lines(report):
        console.print(line)
    evaluation = _evaluate(console, run, [report.state, report.exported], settings or (), evaluate)
    for line in held_out_lines(evaluation) if evaluation else ():
        console.print(line)
    if report.try_command:
        for line in try_lines(report.try_command):
            console.print(line, soft_wrap=True)  # a command to copy whole


def _refuse_precision(dtype: Dtype | None, rounding: RoundingMode | None) -> None:
    """Refuse the options of other formats for the precision of a file."""
    for option, value in (("--dtype", dtype), ("--rounding", rounding)):
        if value is not None:
            raise UsageError(
                f"{option}: GGUF files are rounded by their format",
                "Use --quantization, for example --quantization f16,q8_0.",
            )


def _show_gguf(
    console: Console,
    run: RunDirectory,
    report: GgufReport,
    settings: Sequence[str],
    is_wanted: bool | None,
) -> None:
    """Print the files, their proof, their held-out metrics and a recommendation."""
    from dpo_cli.export.gguf.recommendation import recommend  # loads torch

    for line in gguf_lines(report):
        console.print(line)
    weights = [*(file.weights for file in report.files), report.state]
    evaluation = _evaluate(console, run, weights, settings, is_wanted)
    console.print(file_table(report, evaluation))
    if evaluation is not None:
        *of_files, of_state = (model.groups["all"] for model in evaluation.models)
        found = recommend(report, of_files, of_state)
        console.print(recommendation_line(found))
    for line in gguf_try_lines(report):
        console.print(line, soft_wrap=True)  # a command to copy whole


def _evaluate(
    console: Console,
    run: RunDirectory,
    weights: Sequence[StateDict],
    settings: Sequence[str],
    is_wanted: bool | None,
) -> Evaluation | None:
    """Evaluate weights on the held-out pairs, or print the time that it would take.

    Returns:
        Metrics of each state dict, in their order; None if there are none.
    """
    from dpo_cli.inference.evaluate import evaluate_held_out, evaluation_seconds  # loads torch

    one = evaluation_seconds(run)
    if one is None or is_wanted is False:
        return None
    seconds = len(weights) * one
    is_training = run.holder() is not None
    if is_wanted is None and (is_training or seconds > SOON_SECONDS):
        console.print(
            f"held-out pairs: not evaluated; --evaluate takes about {format_duration(seconds)}"
        )
        return None
    try:
        with PhaseBar(SafeConsole(stderr=True)) as bar:
            return evaluate_held_out(run, settings, weights, bar)
    except DpoError as error:  # the file is written and verified
        console.print(f"held-out pairs: not evaluated: {error.message}")
        return None
