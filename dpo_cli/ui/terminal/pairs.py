"""Preview of tokenized pairs with their loss mask, and histograms of lengths."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from dpo_cli.findings import Histogram, PairPreview, Span
from dpo_cli.formatting import format_count
from dpo_cli.printable import printable

_PROMPT_CHARACTERS = 240
_ANSWER_CHARACTERS = 360
_LEAST_CUT = 60
_BARS = " ▁▂▃▄▅▆▇█"


def lengths_table(histograms: Sequence[Histogram]) -> RenderableType:
    """Return a table of length histograms; the bin after the line holds the truncated pairs."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    limit = histograms[0].limit_tokens
    pairs = sum(histograms[0].counts)
    table.add_column("tokens", no_wrap=True)
    is_cut = any(each.counts[-1] for each in histograms)
    table.add_column(f"0 to {limit:,}{', then beyond' if is_cut else ''}", no_wrap=True)
    for heading in ("median", "90 %", "longest"):
        table.add_column(heading, justify="right", no_wrap=True)
    for histogram in histograms:
        *within, beyond = histogram.counts
        most = max(histogram.counts)
        bars = Text("".join(_bar(number, most) for number in within), style="cyan")
        if is_cut:
            bars.append("│", "dim").append(_bar(beyond, most), "yellow")
        table.add_row(
            histogram.name,
            bars,
            f"{histogram.median_tokens:,}",
            f"{histogram.ninth_decile_tokens:,}",
            f"{histogram.longest_tokens:,}",
        )
    heading = f"lengths of {format_count(pairs, 'pair')}"
    return Group(Rule(heading, align="left", style="dim"), Padding(table, (0, 0, 0, 2)))


def pair_preview(pair: PairPreview, *, marks: bool) -> RenderableType:
    """Return one pair with long texts shortened, below a legend.

    Args:
        pair: the tokens as text.
        marks: also put brackets around the tokens with loss, for output without color.
    """
    heading = Text.assemble((f"pair at {_visible(pair.place)}", "bold"), f": {legend(marks)}")
    return Group(heading, _sides(pair, marks, is_whole=False))


def pair_page(pair: PairPreview, issues: Sequence[str], *, marks: bool) -> RenderableType:
    """Return one whole pair and the names of its issues; see `pair_preview`."""
    heading = Text(_visible(pair.place), style="bold")
    if issues:
        heading.append(f" · {', '.join(issues)}", "yellow")
    return Group(heading, _sides(pair, marks, is_whole=True), "")


def row_page(place: str, problem: str, reason: str, text: str) -> RenderableType:
    """Return a skipped row and the reason."""
    heading = Text.assemble(
        (_visible(place), "bold"), " · ", (problem, "yellow"), f": {_visible(reason)}"
    )
    body = Text(overflow="fold")
    for piece, is_kept in _shortened(text, _ANSWER_CHARACTERS):
        body.append(_visible(piece), "dim" if is_kept else "yellow")
    return Group(heading, Padding(body, (0, 0, 0, 2)), "")


def legend(marks: bool) -> str:
    """Return the explanation of colors, marks and signs."""
    carry = "in ⟦brackets⟧" if marks else "green"
    return f"tokens with loss are {carry}, ↵ is a newline"


def _sides(pair: PairPreview, marks: bool, *, is_whole: bool) -> RenderableType:
    parts: list[RenderableType] = []
    for title, spans in (
        ("shared prompt", pair.shared),
        ("chosen", pair.chosen),
        ("rejected", pair.rejected),
    ):
        tokens = sum(span.tokens for span in spans)
        loss = sum(span.tokens for span in spans if span.carries_loss)
        heading = f"{title} · {format_count(tokens, 'token')}, {loss:,} with loss"
        parts.append(Rule(heading, align="left", style="dim"))
        parts.append(Padding(_spans(spans, marks, is_whole), (0, 0, 0, 2)))
    return Group(*parts)


def _bar(number: int, most: int) -> str:
    eighths = len(_BARS) - 1  # rounded up: a count of 1 must be visible
    return _BARS[-(-number * eighths // most)] if most else _BARS[0]


def _spans(spans: Sequence[Span], marks: bool, is_whole: bool) -> Text:
    text = Text(overflow="fold")
    for span in spans:
        limit = _ANSWER_CHARACTERS if span.carries_loss else _PROMPT_CHARACTERS
        style = "green" if span.carries_loss else "dim"
        opening, closing = "⟦⟧" if marks and span.carries_loss else ("", "")
        text.append(opening, style)
        pieces = [(span.text, True)] if is_whole else _shortened(span.text, limit)
        for piece, is_kept in pieces:
            text.append(_visible(piece), style if is_kept else "yellow")
        ends_line = text.plain.endswith("\n")
        text.rstrip()
        text.append(closing + ("\n" if ends_line else ""), style)
    text.rstrip()
    return text


def _shortened(text: str, limit: int) -> Iterator[tuple[str, bool]]:
    """Yield pieces of a text without its middle; False marks the note about the omission."""
    if len(text) <= limit + _LEAST_CUT:
        yield text, True
        return
    half = limit // 2
    yield text[:half], True
    yield f" [... {len(text) - 2 * half:,} characters ...] ", False
    yield text[-half:], True


def _visible(text: str) -> str:
    return printable(text).replace("\n", "↵\n")
