"""What `dpo check` says: a table of findings, and what is next."""

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


def findings_table(findings: Sequence[Finding]) -> Table:
    """One finding a row: how much it matters, its code, what it is; and below, what to do."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in findings:
        style = "dim" if finding.level is Level.SKIP else "bold"
        table.add_row(_LABELS[finding.level], Text(finding.code, style), _told(finding))
    return table


def verdict(diagnosis: Diagnosis, command: str, again: str) -> list[Text]:
    """What it all comes to, and the next command to type.

    Args:
        diagnosis: what was found.
        command: to type if there is no error.
        again: to type when the errors are mended.
    """
    errors, warnings = diagnosis.count(Level.ERROR), diagnosis.count(Level.WARN)
    found = " and ".join(
        format_count(number, noun)
        for number, noun in ((errors, "error"), (warnings, "warning"))
        if number
    )
    if errors:
        words = f"not ready to train: {found}"
        return [Text(words, style="bold red"), _command("when mended: ", again)]
    words = f"ready to train, with {found}" if found else "ready to train"
    return [Text(words, style="bold green"), _command("next: ", command)]


def _told(finding: Finding) -> Text:
    """Subject, message and remedy."""
    told = Text()
    if finding.subject:
        told.append(f"{finding.subject}  ", style="cyan")
    told.append(finding.message, style="dim" if finding.level is Level.SKIP else "")
    if finding.remedy:
        told.append("\n-> ", style="bold")
        told.append(finding.remedy, style="bold")
    return told


def _command(when: str, command: str) -> Text:
    return Text.assemble((when, "dim"), (command, "bold"))
