"""Reading preference pairs, and naming every row that cannot be used."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dpo_cli.data.formats import FORMATS, Format, Message, Row, renamed
from dpo_cli.data.rows import MalformedError
from dpo_cli.data.sources import NO_PLACES, Places, Source
from dpo_cli.errors import DpoError

MALFORMED_SHARE_LIMIT = 0.01

Problem = Literal["malformed", "identical", "truncated", "left-out"]


@dataclass(frozen=True)
class PreferencePair:
    """Two conversations, one preferred to the other; each holds an assistant's answer.

    Both hold the whole conversation: the prompt is what they share. `line` is the row's number, see
    `dpo_cli.data.sources`.
    """

    line: int
    chosen: Sequence[Message]
    rejected: Sequence[Message]


@dataclass(frozen=True)
class SkippedRow:
    """A row that is not used, and why; `line` is its number, see `dpo_cli.data.sources`."""

    line: int
    problem: Problem
    reason: str

    def to_json(self, places: Places) -> str:
        """One line of `skipped_rows.jsonl`: `line` is that of the file, which is named if there
        are several.
        """
        part = places.part(self.line) if len(places.parts) > 1 else None
        where = {"file": part.name, "line": self.line - part.first + 1} if part else {}
        told = {"line": self.line, **where, "problem": self.problem, "reason": self.reason}
        return json.dumps(told, ensure_ascii=False)


def read_pairs(
    source: Source | Path, lines: range | None = None, places: Places | None = None
) -> Iterator[PreferencePair | SkippedRow]:
    """The rows of a source in order; blank lines of JSONL are passed over.

    Args:
        source: where they come from; a path alone is a file or folder of any known format.
        lines: the numbers (from 1, through all files) of those that are wanted; None for all.
        places: what `source.look` found, if somebody has looked.

    Raises:
        DpoError: a file is not to be read, or there is no row at all.
    """
    if isinstance(source, Path):
        source = Source((source,))
    if places is None:
        places = source.look()
    for part, rows in source.rows(places, lines):
        for number, row in rows:
            line = part.first + number - 1
            yield to_pair(line, row, FORMATS[part.format], source.columns)


def to_pair(
    line: int, row: Row | MalformedError, format: Format, columns: Mapping[str, str]
) -> PreferencePair | SkippedRow:
    """A row as a pair, or the first thing wrong with it."""
    try:
        if isinstance(row, MalformedError):
            raise row
        return PreferencePair(line, *format.sides(renamed(row, columns)))
    except MalformedError as error:
        return SkippedRow(line, "malformed", str(error))


def refuse_if_mostly_malformed(
    source: Source | Path,
    skipped_rows: Sequence[SkippedRow],
    rows: int,
    places: Places = NO_PLACES,
) -> None:
    """Refuse a source of which more than 1 % is malformed: it is not what it is taken for.

    Raises:
        DpoError: naming the first bad rows.
    """
    malformed = [row for row in skipped_rows if row.problem == "malformed"]
    if len(malformed) <= MALFORMED_SHARE_LIMIT * rows:
        return
    details = [f"{places.name(row.line)}: {row.reason}" for row in malformed[:10]]
    if len(malformed) > len(details):
        details.append(f"and {len(malformed) - len(details)} more")
    raise DpoError(
        f"{source}: {len(malformed)} of {rows} rows are malformed"
        f" (more than {MALFORMED_SHARE_LIMIT:.0%})",
        "mend or remove these rows; or say what they are, by data.format and data.columns",
        details,
    )
