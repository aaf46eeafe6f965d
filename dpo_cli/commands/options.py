"""Arguments and options that several commands share, each with one wording."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dpo_cli.commands.complete import complete_profile, complete_run

ProfileArgument = Annotated[
    Path,
    typer.Argument(
        metavar="PROFILE",
        help="A profile: a TOML file, or the name of a shipped one.",
        autocompletion=complete_profile,
    ),
]
RunArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="RUN",
        help="A run: its directory's name or a unique beginning of it, the name of its profile "
        "(the newest run is meant), or a path.",
        show_default=False,
        autocompletion=complete_run,
    ),
]
RunsArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="RUN...",
        help="Runs, each as its directory's name or a unique beginning of it, the name of its "
        "profile (the newest run is meant), or a path.",
        show_default=False,
        autocompletion=complete_run,
    ),
]

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead, for programs.")]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Say what would go, and remove nothing.")
]
RunsDirOption = Annotated[
    Path | None,
    typer.Option(
        "--runs-dir",
        metavar="DIR",
        help="Where runs lie; else DPO_RUNS_DIR, else ./runs.",
        show_default=False,
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Set a key of the profile, as in --set train.epochs=1; may be repeated.",
        show_default=False,
    ),
]
PlainOption = Annotated[
    bool, typer.Option("--plain", help="Print plain lines, also on a terminal.")
]
QuietOption = Annotated[
    bool, typer.Option("--quiet", "-q", help="Print warnings and the end only.")
]
DetachOption = Annotated[
    bool, typer.Option("--detach", "-d", help="Train in the background, without this terminal.")
]
NprocOption = Annotated[
    str | None,
    typer.Option(
        "--nproc",
        metavar="N|auto",
        help="Processes on this machine, each with a device of its own; auto: one a CUDA card.",
        show_default=False,
    ),
]
PrintLaunchOption = Annotated[
    bool,
    typer.Option(
        "--print-launch", help="Print the torchrun command that starts the same; start nothing."
    ),
]


def check_row(stated: str | None) -> str | None:
    """Refuse what cannot name a row, before anything is read.

    Raises:
        UsageError: it is no number, alone or behind the name of a file.
    """
    if stated is not None:
        from dpo_cli.data.sources import split_stated

        split_stated(stated)
    return stated
