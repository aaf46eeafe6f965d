"""`dpo check`: find problems of a profile and its data before training."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from dpo_cli.checks.check import run_checks
from dpo_cli.commands.console import print_json, write_output
from dpo_cli.commands.options import ProfileArgument, RunsDirOption, SetOption, check_row
from dpo_cli.errors import ExitCode
from dpo_cli.findings import Diagnosis, Finding, Level
from dpo_cli.profile.source import find_profile
from dpo_cli.run.directory import runs_root
from dpo_cli.shell import dpo_command
from dpo_cli.ui.terminal.capture import captured_file, recording_console
from dpo_cli.ui.terminal.console import SafeConsole
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
            help="Show the pair of this line with its loss mask, or FILE:LINE with several files.",
            show_default=False,
        ),
    ] = None,
    quick: Annotated[
        bool,
        typer.Option(
            "--quick",
            help="Take no real steps: first loss, gradients, update, memory and time are not"
            " checked.",
        ),
    ] = False,
    verbose: Annotated[
        bool,
        typer.Option(
            "--verbose",
            "-v",
            help="Show the first pair with its loss mask, the lengths, and every statement.",
        ),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the findings as JSON, for programs.")
    ] = False,
    svg: Annotated[
        Path | None,
        typer.Option(
            "--svg",
            metavar="FILE",
            help="Also write the page as SVG, or as plain text if the name ends in .txt.",
            show_default=False,
        ),
    ] = None,
    runs_dir: RunsDirOption = None,
) -> None:
    """Check everything a run needs before it starts.

    Reports all problems of the profile, files, weights, tokenizer, pairs, masks, first steps,
    learning rate, time, memory and disk, each with a remedy, then what the checks that passed
    found. Writes nothing. Exits with 1 if training would fail or learn nothing, else with 0.

    Example: `dpo check my.toml --set data.max_seq_len=1536 --pair 7`
    """
    path = find_profile(profile, str(profile))
    bar = PhaseBar(SafeConsole(stderr=True, quiet=as_json))
    console = SafeConsole(highlight=False, markup=False, emoji=False)
    known = _Known(console, bar, verbose)
    shows_early = not (as_json or quick)
    try:
        with bar:
            diagnosis = run_checks(
                *(path, settings or (), runs_root(runs_dir), pair, bar),
                known.add if shows_early else None,
                takes_steps=not quick,
            )
    except KeyboardInterrupt:
        known.show_rest()
        raise
    words = [str(profile), *(word for setting in settings or () for word in ("--set", setting))]
    words += ["--runs-dir", str(runs_dir)] if runs_dir else []
    train, again = dpo_command("train", *words), dpo_command("check", *words)
    if as_json:
        report = dataclasses.asdict(diagnosis)
        report |= {"ready": diagnosis.is_clean, "next": train if diagnosis.is_clean else again}
        print_json(report)
    else:
        shows_pair, lines = verbose or pair is not None, verdict(diagnosis, train, again)
        _print_page(console, diagnosis, lines, verbose, shows_pair, known.shown)
        if svg is not None:
            drawn = recording_console(console.width, console.height)
            _print_page(drawn, diagnosis, lines, verbose, shows_pair, ())
            write_output(svg, captured_file(drawn, svg.name, f"dpo check {profile}"))
    if not diagnosis.is_clean:
        raise typer.Exit(ExitCode.FAILED)


class _Known:
    """Findings that are known before all checks have ended.

    Problems are printed at once, because real steps take minutes and may not be worth waiting for.

    Attributes:
        shown: findings that are printed already.
    """

    def __init__(self, console: Console, bar: PhaseBar, verbose: bool) -> None:
        self._console, self._bar, self._verbose = console, bar, verbose
        self._findings: list[Finding] = []
        self.shown: list[Finding] = []

    def add(self, findings: Sequence[Finding]) -> None:
        """Print the problems among new findings."""
        self._findings += findings
        problems = [each for each in findings if each.level in (Level.ERROR, Level.WARN)]
        if problems:
            with self._bar.paused():
                _print_findings(self._console, problems, self._verbose)
                self._console.file.flush()
            self.shown += problems

    def show_rest(self) -> None:
        """Print all findings that are not printed yet."""
        if rest := _without(self._findings, self.shown):
            _print_findings(self._console, rest, self._verbose)
        if self._findings:
            self._console.print(Text("stopped: the other checks did not run", "bold"))


def _without(findings: Sequence[Finding], shown: Sequence[Finding]) -> list[Finding]:
    return [each for each in findings if not any(each is other for other in shown)]


def _print_findings(console: Console, findings: Sequence[Finding], verbose: bool) -> None:
    """Print a table of findings; outside of a terminal without blanks at the ends of lines."""
    table = findings_table(findings, in_full=verbose)
    if console.file.isatty() or console.record:
        console.print(table)
        return
    with console.capture() as capture:
        console.print(table)
    for line in capture.get().splitlines():
        text = Text.from_ansi(line)
        text.rstrip()
        console.print(text, soft_wrap=True)


def _print_page(
    console: Console,
    diagnosis: Diagnosis,
    lines: Sequence[Text],
    verbose: bool,
    shows_pair: bool,
    shown: Sequence[Finding],
) -> None:
    """Print the pair, the lengths, the findings that are not shown yet, and the verdict."""
    if shows_pair and diagnosis.preview:
        has_color = console.color_system is not None and not console.no_color
        console.print(pair_preview(diagnosis.preview, marks=not has_color))
        console.print()
    if verbose and diagnosis.histograms:
        console.print(lengths_table(diagnosis.histograms))
        console.print()
    _print_findings(console, _without(diagnosis.findings, shown), verbose)
    if not verbose:
        console.print(Text("-v shows every statement, the lengths and the first pair", "dim"))
    console.print()
    for line in lines:
        console.print(line, soft_wrap=not console.file.isatty())
