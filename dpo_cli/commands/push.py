"""`dpo push`: upload an exported model of a run to the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dpo_cli.api.run import Run
from dpo_cli.commands.console import say
from dpo_cli.commands.options import RunArgument, RunsDirOption, SetOption
from dpo_cli.formatting import format_count, format_size
from dpo_cli.run.directory import runs_root
from dpo_cli.run.lookup import find_saved_run
from dpo_cli.ui.terminal.console import line_console


def push(
    run_name: RunArgument,
    repository: Annotated[
        str,
        typer.Argument(
            metavar="ORG/NAME",
            help="Name on the Hub, where ORG is your user name or an organization.",
        ),
    ],
    source: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="PATH",
            help="Upload this directory or file, which dpo export wrote. Default: the run's newest "
            "exported directory, or a new one.",
            show_default=False,
        ),
    ] = None,
    public: Annotated[
        bool,
        typer.Option("--public", help="Let everybody see the model. Default: it is private."),
    ] = False,
    settings: SetOption = None,
    runs_dir: RunsDirOption = None,
) -> None:
    """Upload an exported model of a run to the Hugging Face Hub, with its model card.

    Without an exported directory, the run is exported first. The model is private, and nothing
    but the files of the export is sent. After an interruption, run the same command again: files
    that were sent completely are not sent again. Log in first with `hf auth login`.

    Example: `dpo push dense my-name/my-model`
    """
    console = line_console()
    run = Run(find_saved_run(runs_root(runs_dir), run_name, say))
    console.print(f"pushing {run.directory.designation} to {repository}")
    report = run.push(repository, source, public=public, settings=settings)
    if report.is_new_export:
        console.print(f"wrote {report.path}, after step {report.optimizer_step}")
    visibility = "public" if report.is_public else "private"
    console.print(
        f"pushed {report.path.name}: {format_count(len(report.files), 'file')},"
        f" {format_size(report.size_bytes)}, {visibility}, after step {report.optimizer_step}"
    )
    if report.newest_step is not None and report.newest_step > report.optimizer_step:
        console.print(f"the run has a newer checkpoint, after step {report.newest_step}")
    console.print(report.url)
