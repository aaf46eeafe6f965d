"""`dpo check`: everything that can be known before training, in a minute."""

from __future__ import annotations

import dataclasses
import json
import shlex
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from dpo_cli.checks.check import run_checks
from dpo_cli.commands.console import write_output
from dpo_cli.commands.options import ProfileArgument, RunsDirOption, SetOption, check_row
from dpo_cli.errors import ExitCode
from dpo_cli.findings import Diagnosis
from dpo_cli.profile.source import find_profile
from dpo_cli.run.directory import runs_root
from dpo_cli.ui.terminal.capture import captured_file, recording_console
from dpo_cli.ui.terminal.findings import findings_table, verdict
from dpo_cli.ui.terminal.pairs import lengths_table, pair_preview
from dpo_cli.ui.terminal.progress import PhaseBar


def check(
    profile: ProfileArgument,
    settings: SetOption = None,
    pair: Annotated[
        str | None,
        typer.Option(
            metavar="LINE",
            callback=check_row,
            help="Show the pair of this line of the data, FILE:LINE where there are several files;"
            " else the first that is kept.",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the findings as JSON, for programs.")
    ] = False,
    svg: Annotated[
        Path | None,
        typer.Option(
            "--svg",
            metavar="FILE",
            help="Write an SVG picture there, too; plain text, if the name ends in .txt.",
            show_default=False,
        ),
    ] = None,
    runs_dir: RunsDirOption = None,
) -> None:
    """Look at everything a run would stand on, before it starts.

    Profile, files, weights, tokenizer, pairs, masks, the first steps, how far the weights can
    move, time, memory and disk: all that is wrong is named at once, each with its remedy. Writes
    nothing. Exits 1 where training would fail or be in vain, else 0.

    Example: `dpo check my.toml --set data.max_seq_len=1536 --pair 7`
    """
    path = find_profile(profile, str(profile))
    bar = PhaseBar(Console(stderr=True, quiet=as_json))
    with bar:
        diagnosis = run_checks(path, settings or (), runs_root(runs_dir), pair, bar)
    words = [str(profile), *(word for setting in settings or () for word in ("--set", setting))]
    words += ["--runs-dir", str(runs_dir)] if runs_dir else []
    train, again = shlex.join(["dpo", "train", *words]), shlex.join(["dpo", "check", *words])
    if as_json:
        report = dataclasses.asdict(diagnosis)
        report |= {"ready": diagnosis.is_clean, "next": train if diagnosis.is_clean else again}
        typer.echo(json.dumps(report, indent=2, ensure_ascii=False))
    else:
        console = Console(highlight=False, markup=False, emoji=False)
        _print_page(console, diagnosis, train, again)
        if svg is not None:
            drawn = recording_console(console.width, console.height)
            _print_page(drawn, diagnosis, train, again)
            write_output(svg, captured_file(drawn, svg.name, f"dpo check {profile}"))
    if not diagnosis.is_clean:
        raise typer.Exit(ExitCode.FAILED)


def _print_page(console: Console, diagnosis: Diagnosis, train: str, again: str) -> None:
    """The pair, the lengths, the findings, and the command that comes next."""
    if diagnosis.preview:
        has_colour = console.color_system is not None and not console.no_color
        console.print(pair_preview(diagnosis.preview, marks=not has_colour))
        console.print()
    if diagnosis.histograms:
        console.print(lengths_table(diagnosis.histograms))
        console.print()
    console.print(findings_table(diagnosis.findings))
    console.print()
    for line in verdict(diagnosis, train, again):
        console.print(line, soft_wrap=True)
