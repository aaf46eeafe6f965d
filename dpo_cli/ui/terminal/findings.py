"""Terminal output of `dpo check`: a table of findings and the next command."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import PurePath

from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from dpo_cli.findings import Diagnosis, Finding, Level
from dpo_cli.formatting import format_count

_LABELS = {
    Level.OK: Text("ok", style="green"),
    Level.WARN: Text("WARN", style="bold yellow"),
    Level.ERROR: Text("ERROR", style="bold red"),
    Level.SKIP: Text("skip", style="dim"),
}


_ORDER = (Level.ERROR, Level.WARN, Level.SKIP, Level.OK)


def findings_table(findings: Sequence[Finding], *, in_full: bool = False) -> Table:
    """Return a table with level, code, message and remedy of each finding, problems first.

    Args:
        findings: in the order of the checks, which remains among those of one level.
        in_full: show every message as a whole; otherwise findings that are no problem name files
            without their folder, and of statements separated by semicolons those that fit into a
            line, at least the first. No statement is cut.
    """
    names = Counter(_name(subject) for subject in {each.subject for each in findings})
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(
        no_wrap=True, min_width=max((len(_LABELS[each.level]) for each in findings), default=0)
    )
    table.add_column(overflow="fold")
    table.add_column(overflow="fold")
    for finding in sorted(findings, key=lambda finding: _ORDER.index(finding.level)):
        style = "dim" if finding.level is Level.SKIP else "bold"
        is_brief = not in_full and finding.level in (Level.OK, Level.SKIP)
        name = _name(finding.subject)
        is_short = is_brief and names[name] == 1
        text = _finding_text(finding, name if is_short else finding.subject)
        message = _Brief(text) if is_brief else text
        table.add_row(_LABELS[finding.level], Text(finding.code, style), message)
    return table


def _name(subject: str) -> str:
    """Return the name of a file without its folder; other subjects unchanged."""
    return subject if ":" in subject else PurePath(subject).name


class _Brief:
    """Rich renderable of the statements of a text that fit into one line, at least the first."""

    def __init__(self, text: Text) -> None:
        self._text = text
        self._ends = [end.start() for end in re.finditer("; |\n|$", text.plain)]

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement.get(console, options, self._text)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        first, *more = (self._text[:end] for end in self._ends)
        yield max(
            (text for text in more if text.cell_len <= options.max_width), key=len, default=first
        )


def verdict(diagnosis: Diagnosis, command: str, again: str) -> list[Text]:
    """Return the result of a check and the next command.

    Args:
        diagnosis: the findings.
        command: next command if there is no error.
        again: next command once the errors are fixed.
    """
    errors, warnings = diagnosis.count(Level.ERROR), diagnosis.count(Level.WARN)
    problems = " and ".join(
        format_count(number, noun)
        for number, noun in ((errors, "error"), (warnings, "warning"))
        if number
    )
    if errors:
        words = f"not ready to train: {problems}"
        return [Text(words, style="bold red"), _command("once fixed: ", again)]
    words = f"ready to train, with {problems}" if problems else "ready to train"
    return [Text(words, style="bold green"), _command("next: ", command)]


def _finding_text(finding: Finding, subject: str) -> Text:
    text = Text()
    if subject:
        text.append(f"{subject}  ", style="cyan")
    text.append(finding.message, style="dim" if finding.level is Level.SKIP else "")
    if finding.remedy:
        text.append("\n-> ", style="bold")
        text.append(finding.remedy, style="bold")
    return text


def _command(when: str, command: str) -> Text:
    return Text.assemble((when, "dim"), (command, "bold"))
