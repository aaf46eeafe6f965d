"""`dpo import`: a Hugging Face directory as the file that MiniMind's own scripts load."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dpo_cli.commands.console import plain_console
from dpo_cli.commands.export import Dtype
from dpo_cli.formatting import format_count


def import_model(
    directory: Annotated[
        Path,
        typer.Argument(metavar="DIR", help="With config.json, such as `dpo export` writes."),
    ],
    to: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Where to write; else here, under MiniMind's name: full_sft_512.pth.",
            show_default=False,
        ),
    ] = None,
    dtype: Annotated[
        Dtype, typer.Option(metavar="|".join(Dtype), help="The file's precision.")
    ] = Dtype.FLOAT16,
    force: Annotated[bool, typer.Option("--force", help="Write over a file.")] = False,
) -> None:
    """Write a model that MiniMind can compute as MiniMind's own file.

    The file is loaded back and compared, bit for bit. Other models need no such thing: any Hugging
    Face directory can be a profile's model.weights.

    Example: `dpo import ./MiniMind2 --to out/full_sft_768.pth`
    """
    console = plain_console()
    with console.status(f"importing {directory}"):
        from dpo_cli.export.import_hf import import_directory  # imports torch: seconds

        path, model_weights = import_directory(directory, to, dtype.value, force)
    console.print(
        f"wrote {path}: {model_weights.architecture.description},"
        f" {format_count(model_weights.parameters, 'parameter')} in {dtype.value}"
    )
