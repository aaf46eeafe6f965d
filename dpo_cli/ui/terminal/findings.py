"""Terminal output of `dpo check`: a table of findings and the next command."""

from __future__ import annotations

from collections.abc import Sequence

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
        in_full: wrap every message; otherwise findings that are no problem get one line each, cut
            at the width of the console.
    """
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in sorted(findings, key=lambda finding: _ORDER.index(finding.level)):
        style = "dim" if finding.level is Level.SKIP else "bold"
        text = _finding_text(finding)
        if not in_full and finding.level in (Level.OK, Level.SKIP):
            text.no_wrap, text.overflow = True, "ellipsis"
        table.add_row(_LABELS[finding.level], Text(finding.code, style), text)
    return table


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


def _finding_text(finding: Finding) -> Text:
    text = Text()
    if finding.subject:
        text.append(f"{finding.subject}  ", style="cyan")
    text.append(finding.message, style="dim" if finding.level is Level.SKIP else "")
    if finding.remedy:
        text.append("\n-> ", style="bold")
        text.append(finding.remedy, style="bold")
    return text


def _command(when: str, command: str) -> Text:
    return Text.assemble((when, "dim"), (command, "bold"))
