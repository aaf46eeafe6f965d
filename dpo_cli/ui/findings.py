"""What `dpo check` shows: a table of findings, a pair with its loss in colour, and what is next."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from dpo_cli.findings import Diagnosis, Finding, Level, PairPreview, Span
from dpo_cli.ui.report import count

_LABELS = {
    Level.OK: Text("ok", style="green"),
    Level.WARN: Text("WARN", style="bold yellow"),
    Level.ERROR: Text("ERROR", style="bold red"),
    Level.SKIP: Text("skip", style="dim"),
}
_PROMPT_CHARACTERS = 240
_ANSWER_CHARACTERS = 360
_LEAST_CUT = 60
_CONTROLS = {code: 0x2400 + code for code in range(32)} | {ord("\t"): "\t", ord("\n"): "↵\n"}


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
        count(number, noun) for number, noun in ((errors, "error"), (warnings, "warning")) if number
    )
    if errors:
        words = f"not ready to train: {found}"
        return [Text(words, style="bold red"), _command("when mended: ", again)]
    words = f"ready to train, with {found}" if found else "ready to train"
    return [Text(words, style="bold green"), _command("next: ", command)]


def pair_preview(pair: PairPreview, *, marks: bool) -> RenderableType:
    """One pair as training sees it, the tokens that carry loss in green.

    Args:
        pair: the tokens as text.
        marks: put those tokens in brackets as well, for where there is no colour.
    """
    carry = "in ⟦brackets⟧" if marks else "green"
    parts: list[RenderableType] = [
        Text.assemble(
            (f"the pair of line {pair.line}", "bold"),
            f": tokens that carry loss are {carry}, ↵ is a newline",
        )
    ]
    for title, spans in (
        ("both sides begin with", pair.shared),
        ("chosen", pair.chosen),
        ("rejected", pair.rejected),
    ):
        tokens = sum(span.tokens for span in spans)
        loss = sum(span.tokens for span in spans if span.carries_loss)
        heading = f"{title} · {count(tokens, 'token')}, {loss:,} with loss"
        parts.append(Rule(heading, align="left", style="dim"))
        parts.append(Padding(_spans(spans, marks), (0, 0, 0, 2)))
    return Group(*parts)


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


def _spans(spans: Sequence[Span], marks: bool) -> Text:
    text = Text(overflow="fold")
    for span in spans:
        limit = _ANSWER_CHARACTERS if span.carries_loss else _PROMPT_CHARACTERS
        style = "green" if span.carries_loss else "dim"
        opening, closing = "⟦⟧" if marks and span.carries_loss else ("", "")
        text.append(opening, style)
        for piece, is_kept in _shortened(span.text, limit):
            text.append(piece.translate(_CONTROLS), style if is_kept else "yellow")
        ends_line = text.plain.endswith("\n")
        text.rstrip()
        text.append(closing + ("\n" if ends_line else ""), style)
    text.rstrip()
    return text


def _shortened(text: str, limit: int) -> Iterator[tuple[str, bool]]:
    """The text, or its two ends and how much was left out; and whether a piece is of the text."""
    if len(text) <= limit + _LEAST_CUT:
        yield text, True
        return
    half = limit // 2
    yield text[:half], True
    yield f" [... {len(text) - 2 * half:,} characters ...] ", False
    yield text[-half:], True
