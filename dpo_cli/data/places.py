"""Names of rows: files and lines, from numbers that count through all files of a source."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from dpo_cli.data.file_kinds import Kind
from dpo_cli.data.formats import FORMATS
from dpo_cli.errors import UsageError

_NAMED = 5
_KINDS: Mapping[Kind, str] = {
    "jsonl": "JSONL",
    "json": "a JSON array",
    "objects": "JSON objects",
    "csv": "CSV",
    "parquet": "Parquet",
}
_ROW_NAME = re.compile(r"(?:(.+):)?([1-9][0-9]{0,8})", re.DOTALL)  # numbers are kept as int32


@dataclass(frozen=True)
class Part:
    """One file of a source.

    Attributes:
        name: name of the file for users.
        kind: kind of the file.
        format: name of the format of its rows; "" for a file without rows.
        source: index of the path in `data.data_path` that the file belongs to.
        first: number of its first row.
        rows: number of its rows.
    """

    name: str
    kind: Kind
    format: str
    source: int
    first: int
    rows: int

    @property
    def unit(self) -> str:
        """Unit of its row numbers, "line" or "row"."""
        return unit_of(self.kind)


@dataclass(frozen=True)
class Places:
    """Mapping from row numbers to files and lines."""

    parts: Sequence[Part] = ()

    @property
    def numbers(self) -> int:
        """Number of rows in all files."""
        return sum(part.rows for part in self.parts)

    @property
    def description(self) -> str:
        """Formats and kinds of the files, for users."""
        counts = Counter(
            f"{FORMATS[part.format].title}, {_KINDS[part.kind]}"
            for part in self.parts
            if part.format
        )
        return "; ".join(title + f" ({n} files)" * (n > 1) for title, n in counts.items())

    def named(self, names: Sequence[str]) -> Places:
        """Replace the names of the files."""
        parts = zip(self.parts, names, strict=True)
        return Places(tuple(replace(part, name=name) for part, name in parts))

    def name(self, number: int) -> str:
        """Name a row: "line 7", or "line 7 of FILE" if there are several files."""
        part = self.part(number)
        if part is None:
            return f"line {number}"
        of = f" of {part.name}" if len(self.parts) > 1 else ""
        return f"{part.unit} {number - part.first + 1}{of}"

    def names(self, numbers: Sequence[int], most: int = _NAMED) -> str:
        """Name the first `most` rows: "lines 3, 7, ..."."""
        more = ", ..." if len(numbers) > most else ""
        if len(self.parts) > 1:
            return ", ".join(map(self.name, numbers[:most])) + more
        return f"{self._unit}{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers[:most]))}{more}"

    def couples(self, couples: Sequence[tuple[int, int]]) -> str:
        """Name the first pairs of rows: "lines 3 and 7, 4 and 9, ..."."""
        more = ", ..." if len(couples) > _NAMED else ""
        name = self.name if len(self.parts) > 1 else str
        shown = ", ".join(f"{name(first)} and {name(second)}" for first, second in couples[:_NAMED])
        return f"{shown}{more}" if len(self.parts) > 1 else f"{self._unit}s {shown}{more}"

    def row_name(self, number: int) -> str:
        """Return the argument that makes `find` return this row."""
        part = self.part(number)
        if part is None or len(self.parts) == 1:
            return str(number)
        return f"{part.name}:{number - part.first + 1}"

    def find(self, row_name: str) -> int:
        """Return the number of a row by its name; see `split_row_name`.

        Without a file name the number counts through all files.

        Raises:
            UsageError: there is no such file, or it has fewer rows.
        """
        file, number = split_row_name(row_name)
        if not file:
            return number
        for part in self.parts:
            if part.name == file and number <= part.rows:
                return part.first + number - 1
            if part.name == file:
                raise UsageError(f"No row {row_name}.", f"{file} has {part.rows:,} {part.unit}s.")
        names = [part.name for part in self.parts[:_NAMED]]
        more = ", ..." if len(self.parts) > _NAMED else ""
        raise UsageError(f"No file {file} in the data.", f"Files: {', '.join(names)}{more}.")

    def part(self, number: int) -> Part | None:
        """Return the file of a row; None for a number before the first row."""
        index = bisect_right(self._firsts, number)
        return self.parts[index - 1] if index else None

    @property
    def _unit(self) -> str:
        return self.parts[0].unit if self.parts else "line"

    @cached_property
    def _firsts(self) -> list[int]:
        return [part.first for part in self.parts]


def split_row_name(row_name: str) -> tuple[str, int]:
    """Split "7" or "FILE:7" into the file ("" for none) and the number.

    Raises:
        UsageError: the text has another form.
    """
    match = _ROW_NAME.fullmatch(row_name)
    if not match:
        raise UsageError(f"No row {row_name!r}.", "Use a line number, or FILE:LINE.")
    return match[1] or "", int(match[2])


NO_PLACES = Places()
"""Places of rows without a source, where a number is a line."""


def unit_of(kind: Kind) -> str:
    """Return the unit of the row numbers of a kind of files, "line" or "row"."""
    return "line" if kind == "jsonl" else "row"
