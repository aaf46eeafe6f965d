"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dpo_cli.commands.complete import complete_model, complete_profile, complete_run
from dpo_cli.data.places import split_row_name

ProfileArgument = Annotated[
    Path,
    typer.Argument(
        metavar="PROFILE",
        help="Profile: a TOML file, or the name of a shipped profile.",
        autocompletion=complete_profile,
    ),
]
RunArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="RUN",
        help="Run: directory name or a unique beginning of it, profile name (its newest run), or "
        "path.",
        show_default=False,
        autocompletion=complete_run,
    ),
]
RunsArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="RUN...",
        help="Runs: directory names or unique beginnings of them, profile names (their newest "
        "run), or paths.",
        show_default=False,
        autocompletion=complete_run,
    ),
]
MODEL_HELP = (
    "Run (its newest checkpoint), MiniMind weights file, or Hugging Face directory. A path takes "
    "precedence over a run with the same name."
)
DataOption = Annotated[
    Path | None,
    typer.Option(
        "--data",
        metavar="FILE",
        help="Evaluate on these preference pairs: a file, a folder, or hf:ORG/NAME. Default: the "
        "held-out pairs of the run or profile.",
        show_default=False,
    ),
]
ReferenceOption = Annotated[
    str | None,
    typer.Option(
        "--reference",
        metavar="MODEL",
        help="Compare with this model: a run, file or directory. Default: the reference of the run "
        "or profile. Without a reference, only the model's own log-probs are shown.",
        show_default=False,
        autocompletion=complete_model,
    ),
]
ProfileOption = Annotated[
    Path | None,
    typer.Option(
        "--profile",
        metavar="PROFILE",
        help="For a file or directory: take objective, lengths, tokenizer, reference and held-out "
        "pairs from this profile, for example the profile.toml of a run.",
        show_default=False,
        autocompletion=complete_profile,
    ),
]
TokenizerOption = Annotated[
    Path | None,
    typer.Option(
        "--tokenizer",
        metavar="DIR",
        help="Read texts with the tokenizer in this directory. Default: the tokenizer of the run, "
        "profile or Hugging Face directory.",
        show_default=False,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="List what would be removed, and remove nothing.")
]
BestOption = Annotated[
    bool,
    typer.Option(
        "--best", help="Use the run's checkpoint with the lowest held-out loss, not the newest."
    ),
]
WidthOption = Annotated[
    int | None,
    typer.Option(
        "--width",
        metavar="COLUMNS",
        min=40,
        max=1000,
        help="Draw this wide. Default: the width of the terminal.",
        show_default=False,
    ),
]
HeightOption = Annotated[
    int | None,
    typer.Option(
        "--height",
        metavar="LINES",
        min=10,
        max=1000,
        help="Draw this high. Default: the height of the terminal.",
        show_default=False,
    ),
]
RunsDirOption = Annotated[
    Path | None,
    typer.Option(
        "--runs-dir",
        metavar="DIR",
        help="Directory of the runs. Default: DPO_RUNS_DIR, else ./runs.",
        show_default=False,
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Set a profile key, for example --set train.epochs=1. Repeat for more keys.",
        show_default=False,
    ),
]
PlainOption = Annotated[
    bool, typer.Option("--plain", help="Print plain lines instead of the live panel.")
]
QuietOption = Annotated[
    bool, typer.Option("--quiet", "-q", help="Print only warnings and the result.")
]
DetachOption = Annotated[
    bool, typer.Option("--detach", "-d", help="Train in the background and return at once.")
]
NprocOption = Annotated[
    str | None,
    typer.Option(
        "--nproc",
        metavar="N|auto",
        help="Train with N processes on this machine, each on its own device. auto: one per GPU.",
        show_default=False,
    ),
]
PrintLaunchOption = Annotated[
    bool,
    typer.Option("--print-launch", help="Print the equivalent torchrun command and start nothing."),
]


def check_row(row: str | None) -> str | None:
    """Check the form of LINE or FILE:LINE before anything is read.

    Raises:
        UsageError: the line is not a number.
    """
    if row is not None:
        split_row_name(row)
    return row
