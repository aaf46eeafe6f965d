"""Reading of preference pairs and reporting of every row that cannot be used."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from dpo_cli.data.columns import Columns, Row
from dpo_cli.data.formats import FORMATS, Format
from dpo_cli.data.messages import Message
from dpo_cli.data.places import NO_PLACES, Places
from dpo_cli.data.row_readers import UnrankedError
from dpo_cli.data.rows import NOT_UTF_8, MalformedError
from dpo_cli.data.sources import Source
from dpo_cli.data.tools import Tool, tools_of
from dpo_cli.errors import DpoError
from dpo_cli.formatting import format_percent

_MAX_SKIPPED = 1_000_000
"""Skipped rows are kept in memory, with their reasons."""
MALFORMED_SHARE_LIMIT = 0.01

Problem = Literal["malformed", "identical", "truncated", "left-out", "tie"]


@dataclass(frozen=True)
class PreferencePair:
    """Two whole conversations, of which the chosen one is preferred.

    Attributes:
        line: number of the row, see `dpo_cli.data.places`.
        chosen, rejected: messages.
        prompt_turns: number of messages of an explicit prompt, with which both sides begin; None
            for whole conversations, whose prompt is their common beginning.
        tools: definitions of the tools that the assistant may call.
        unread: values of the columns that the format does not read, by name.
    """

    line: int
    chosen: Sequence[Message]
    rejected: Sequence[Message]
    prompt_turns: int | None = None
    tools: Sequence[Tool] = ()
    unread: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)


@dataclass(frozen=True)
class SkippedRow:
    """Row that is left out of training, with the reason; for `line` see `dpo_cli.data.places`."""

    line: int
    problem: Problem
    reason: str

    def to_json(self, places: Places) -> str:
        """Format one line of `skipped_rows.jsonl`; with several files it has the file name."""
        part = places.part(self.line) if len(places.parts) > 1 else None
        where = {"file": part.name, "line": self.line - part.first + 1} if part else {}
        entry = {"line": self.line, **where, "problem": self.problem, "reason": self.reason}
        return json.dumps(entry, ensure_ascii=False)


def read_pairs(
    source: Source | Path, lines: range | None = None, places: Places | None = None
) -> Iterator[PreferencePair | SkippedRow]:
    """Read the rows of a source in order, without blank lines of JSONL.

    Args:
        source: files of pairs; a path is a file or folder of any known format.
        lines: numbers (from 1, through all files) of the rows to read; None for all.
        places: result of `source.look`, if known.

    Raises:
        DpoError: a file cannot be read, or there is no row at all.
    """
    if isinstance(source, Path):
        source = Source((source,))
    if places is None:
        places = source.look()
    skipped = 0
    for part, rows in source.rows(places, lines):
        for number, row in rows:
            line = part.first + number - 1
            pair = to_pair(line, row, FORMATS[part.format], source.columns)
            skipped += isinstance(pair, SkippedRow)
            if skipped > _MAX_SKIPPED:
                raise DpoError(
                    f"{source}: more than {_MAX_SKIPPED:,} rows are no usable pairs, the last one"
                    f" is {places.name(line)}",
                    "Set data.format and data.columns, or remove these rows.",
                )
            yield pair


def to_pair(
    line: int, row: Row | MalformedError, format: Format, columns: Mapping[str, str]
) -> PreferencePair | SkippedRow:
    """Convert a row to a pair, or to a skipped row with the first problem."""
    try:
        if isinstance(row, MalformedError):
            raise row
        found = Columns(row, columns)
        sides = format.read(found)
        tools = tools_of({"tools": sides.tools}, sides.chosen)
    except UnrankedError as error:
        return SkippedRow(line, "tie", str(error))
    except RecursionError:
        return SkippedRow(line, "malformed", "nested too deeply")
    except MalformedError as error:
        return SkippedRow(line, "malformed", str(error))
    return PreferencePair(
        line, sides.chosen, sides.rejected, sides.prompt_turns, tools, found.unread
    )


def refuse_if_mostly_malformed(
    source: Source | Path,
    skipped_rows: Sequence[SkippedRow],
    rows: int,
    places: Places = NO_PLACES,
) -> None:
    """Refuse a source with more than 1 % malformed rows: it probably has another format.

    Raises:
        DpoError: lists the first malformed rows.
    """
    malformed = [row for row in skipped_rows if row.problem == "malformed"]
    if len(malformed) <= MALFORMED_SHARE_LIMIT * rows:
        return
    details = [f"{places.name(row.line)}: {row.reason}" for row in malformed[:10]]
    if len(malformed) > len(details):
        details.append(f"and {len(malformed) - len(details)} more")
    given = source if isinstance(source, Source) else Source((source,))
    hints = {"data.format": given.format == "auto", "data.columns": not given.columns}
    unset = [key for key, is_unset in hints.items() if is_unset]
    remedy = "Fix or remove these rows" + (f", or set {' and '.join(unset)}." if unset else ".")
    of_encoding = sum(row.reason.startswith(NOT_UTF_8) for row in malformed)
    if 2 * of_encoding > len(malformed):
        remedy = (
            "Save the file as UTF-8. It may be in GB18030 (iconv -f GB18030 -t UTF-8), or in"
            " Windows-1252 (iconv -f WINDOWS-1252 -t UTF-8)."
        )
    raise DpoError(
        f"{source}: {len(malformed)} of {rows} rows are malformed"
        f" (more than {format_percent(MALFORMED_SHARE_LIMIT, 0)})",
        remedy,
        details,
    )
