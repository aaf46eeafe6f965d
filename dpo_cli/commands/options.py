"""Arguments and options that several commands share, each with one wording."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dpo_cli.commands.complete import complete_model, complete_profile, complete_run
from dpo_cli.data.sources import split_row_name

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
MODEL_HELP = (
    "A run (its newest state), a weights file of MiniMind's, or a Hugging Face folder; what lies "
    "here under that name goes before a run's."
)
DataOption = Annotated[
    Path | None,
    typer.Option(
        "--data",
        metavar="FILE",
        help="Preference pairs to judge by, a file or a folder; else the held-out pairs of the run "
        "or profile.",
        show_default=False,
    ),
]
ReferenceOption = Annotated[
    str | None,
    typer.Option(
        "--reference",
        metavar="MODEL",
        help="What to compare with, a run, a file or a folder; else the reference of the run or "
        "profile. Without any, a model is judged by its own log-probs.",
        show_default=False,
        autocompletion=complete_model,
    ),
]
ProfileOption = Annotated[
    Path | None,
    typer.Option(
        "--profile",
        metavar="PROFILE",
        help="For a file or a folder: the profile that states objective, lengths, tokenizer, "
        "reference and held-out pairs, such as the profile.toml of a run.",
        show_default=False,
        autocompletion=complete_profile,
    ),
]
TokenizerOption = Annotated[
    Path | None,
    typer.Option(
        "--tokenizer",
        metavar="DIR",
        help="The tokenizer's folder; else the run's or profile's, or that in a Hugging Face "
        "folder.",
        show_default=False,
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
        split_row_name(stated)
    return stated
