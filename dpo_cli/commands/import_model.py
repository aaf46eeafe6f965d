"""`dpo import`: convert a Hugging Face directory to a MiniMind weights file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dpo_cli.commands.export import Dtype
from dpo_cli.formatting import format_count
from dpo_cli.ui.terminal.console import line_console


def import_model(
    directory: Annotated[
        Path,
        typer.Argument(metavar="DIR", help="Hugging Face directory with a config.json."),
    ],
    to: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write to this file. Default: MiniMind's name here, for example full_sft_512.pth.",
            show_default=False,
        ),
    ] = None,
    dtype: Annotated[
        Dtype, typer.Option(metavar="|".join(Dtype), help="Set the precision of the file.")
    ] = Dtype.FLOAT16,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
) -> None:
    """Convert a Hugging Face directory to a weights file for MiniMind's own scripts.

    The file is loaded back and compared bit for bit. To train a model you need no import: any
    Hugging Face directory can be a profile's model.weights.

    Example: `dpo import ./MiniMind2 --to out/full_sft_768.pth`
    """
    console = line_console()
    with console.status(f"importing {directory}"):
        from dpo_cli.export.import_hf import import_directory  # loads torch

        path, model_weights = import_directory(directory, to, dtype.value, force)
    console.print(
        f"wrote {path}: {model_weights.architecture.description},"
        f" {format_count(model_weights.parameters, 'parameter')} in {dtype.value}"
    )
