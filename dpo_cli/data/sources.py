"""Where pairs come from: files and folders, one after another, and the numbers of their rows.

Rows are numbered through all files of a source, so that a number is enough to know a row by;
`Places` says what that is to a reader: "line 7", or "row 7 of part-2.parquet".
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from dpo_cli.data.file_readers import (
    Kind,
    Numbered,
    count_numbers,
    kind_of,
    read_rows,
)
from dpo_cli.data.formats import FORMATS, Row, formats_of, renamed, unknown_columns
from dpo_cli.data.rows import MalformedError
from dpo_cli.errors import DpoError, UsageError
from dpo_cli.files import PAIR_SUFFIXES, pair_files, sha256_file

_LOOKED_AT_ROWS = 100
_NAMED = 5
_PROGRESS_ROWS = 5000
_KINDS = {"jsonl": "JSONL", "json": "a JSON array", "csv": "CSV", "parquet": "Parquet"}
_STATED = re.compile(r"(?:(.+):)?([1-9][0-9]{0,8})", re.DOTALL)  # numbers are kept as int32


@dataclass(frozen=True)
class Part:
    """One file of a source.

    Attributes:
        name: of the file, to a reader.
        kind: what it is.
        format: the name of what its rows are; "" if it has none.
        source: which of the source's paths it came from.
        first: number of its first row.
        rows: how many numbers it takes up.
    """

    name: str
    kind: Kind
    format: str
    source: int
    first: int
    rows: int

    @property
    def unit(self) -> str:
        """What is counted."""
        return "line" if self.kind == "jsonl" else "row"


@dataclass(frozen=True)
class Places:
    """What the numbers of rows mean."""

    parts: Sequence[Part] = ()

    @property
    def numbers(self) -> int:
        """How many there are."""
        return sum(part.rows for part in self.parts)

    @property
    def description(self) -> str:
        """Which format was found in how many files, and what those are."""
        counts = Counter(
            f"{FORMATS[part.format].title}, {_KINDS[part.kind]}"
            for part in self.parts
            if part.format
        )
        found = (what + f" ({n} files)" * (n > 1) for what, n in counts.items())
        return "; ".join(found)

    def named(self, names: Sequence[str]) -> Places:
        """The same with other names for the files."""
        parts = zip(self.parts, names, strict=True)
        return Places(tuple(replace(part, name=name) for part, name in parts))

    def name(self, number: int) -> str:
        """ "line 7", or "line 7 of FILE" where there are several."""
        part = self.part(number)
        if part is None:
            return f"line {number}"
        of = f" of {part.name}" if len(self.parts) > 1 else ""
        return f"{part.unit} {number - part.first + 1}{of}"

    def names(self, numbers: Sequence[int], most: int = _NAMED) -> str:
        """The first of them: "lines 3, 7, ..."."""
        more = ", ..." if len(numbers) > most else ""
        if len(self.parts) > 1:
            return ", ".join(map(self.name, numbers[:most])) + more
        return f"{self._unit}{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers[:most]))}{more}"

    def couples(self, couples: Sequence[tuple[int, int]]) -> str:
        """The first of them: "lines 3 and 7, 4 and 9, ..."."""
        more = ", ..." if len(couples) > _NAMED else ""
        name = self.name if len(self.parts) > 1 else str
        shown = ", ".join(f"{name(first)} and {name(second)}" for first, second in couples[:_NAMED])
        return f"{shown}{more}" if len(self.parts) > 1 else f"{self._unit}s {shown}{more}"

    def stated(self, number: int) -> str:
        """What `find` finds a row by."""
        part = self.part(number)
        if part is None or len(self.parts) == 1:
            return str(number)
        return f"{part.name}:{number - part.first + 1}"

    def find(self, stated: str) -> int:
        """The number of a row that somebody names; see `split_stated`.

        Without a file's name it counts through all of them.

        Raises:
            UsageError: there is no such file, or it has fewer rows.
        """
        file, number = split_stated(stated)
        if not file:
            return number
        for part in self.parts:
            if part.name == file and number <= part.rows:
                return part.first + number - 1
            if part.name == file:
                raise UsageError(f"{stated}: no such row", f"{file} has {part.rows:,} {part.unit}s")
        names = [part.name for part in self.parts[:_NAMED]]
        more = ", ..." if len(self.parts) > _NAMED else ""
        raise UsageError(f"{stated}: no file of this name", f"there are {', '.join(names)}{more}")

    def part(self, number: int) -> Part | None:
        """The file that a row is in."""
        index = bisect_right(self._firsts, number)
        return self.parts[index - 1] if index else None

    @property
    def _unit(self) -> str:
        return self.parts[0].unit if self.parts else "line"

    @cached_property
    def _firsts(self) -> list[int]:
        return [part.first for part in self.parts]


def split_stated(stated: str) -> tuple[str, int]:
    """The file ("" for none) and number of a row that is stated as "7" or "FILE:7".

    Raises:
        UsageError: it is stated otherwise.
    """
    found = _STATED.fullmatch(stated)
    if not found:
        raise UsageError(
            f"{stated!r} names no row", "give a line, as in 7; of several files, as in part-2.csv:7"
        )
    return found[1] or "", int(found[2])


NO_PLACES = Places()
"""Of rows that come from no source: a number is a line."""


@dataclass(frozen=True)
class Source:
    """Files of pairs, and what their columns mean.

    Attributes:
        paths: files, or folders of files.
        format: the name of one, or "auto" to look at the first rows of each file.
        columns: of the formats' columns, those that have another name here, and which.
    """

    paths: tuple[Path, ...]
    format: str = "auto"
    columns: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return ", ".join(map(str, self.paths))

    @cached_property
    def files(self) -> list[tuple[int, Path]]:
        """Every file, and which of the paths it belongs to.

        Raises:
            DpoError: a folder holds none, or a file is named twice.
        """
        files = []
        for number, path in enumerate(self.paths):
            try:
                found = pair_files(path)
            except OSError as error:
                raise DpoError(
                    f"{path}: {error.strerror}", "set data.data_path to a folder that can be read"
                ) from error
            if not found:
                raise DpoError(
                    f"{path}: the folder holds no file of pairs",
                    f"put files that end in {', '.join(PAIR_SUFFIXES)} there",
                )
            files += [(number, file) for file in found]
        counts = Counter(file.resolve() for _, file in files)
        if twice := [file for _, file in files if counts[file.resolve()] > 1]:
            raise DpoError(
                f"{twice[0]} is named twice by data.data_path",
                "name it once; data.mixture_weights says how often its pairs count",
            )
        return files

    @property
    def names(self) -> list[str]:
        """What the files are called: their names, where those differ."""
        names = [path.name for _, path in self.files]
        return names if len({*names}) == len(names) else [str(path) for _, path in self.files]

    def content(self) -> str:
        """Hex SHA-256 of the file; of several, of theirs in a row."""
        digests = []
        for _, path in self.files:
            try:
                digests.append(sha256_file(path))
            except OSError as error:
                raise DpoError(
                    f"{path}: {error.strerror}", "set data.data_path to a file of preference pairs"
                ) from error
        if len(digests) == 1:
            return digests[0]
        return hashlib.sha256("\n".join(digests).encode()).hexdigest()

    def identity(self) -> list[object]:
        """What decides the pairs beside the content of the files."""
        kinds = [kind_of(path) for _, path in self.files]
        paths = [number for number, _ in self.files]
        return [self.format, sorted(self.columns.items()), kinds, paths]

    def look(self, on_progress: Callable[[int], None] = lambda rows: None) -> Places:
        """Look at each file: what it is, which format it has, how many rows.

        Args:
            on_progress: called with the number of rows counted so far.

        Raises:
            DpoError: a file cannot be read, or has no known format; or there is no row at all.
        """
        parts: list[Part] = []
        first = 1
        for name, (source, path) in zip(self.names, self.files, strict=True):
            kind = kind_of(path)
            format = self._format_of(path, kind)
            rows = 0
            for rows in count_numbers(path, kind):
                if rows % _PROGRESS_ROWS == 0:
                    on_progress(first - 1 + rows)
            parts.append(Part(name, kind, format, source, first, rows))
            first += rows
        if not any(part.format for part in parts):
            raise DpoError(f"{self}: the file holds no rows", "write one preference pair a row")
        return Places(tuple(parts))

    def rows(self, places: Places, wanted: range | None = None) -> Iterator[tuple[Part, Numbered]]:
        """The rows of each file, numbered from 1 in each.

        Args:
            places: from `look`.
            wanted: the numbers, through all files, of those to give; None for all.
        """
        for part, (_, path) in zip(places.parts, self.files, strict=True):
            if not part.rows:
                continue
            if wanted is None:
                yield part, read_rows(path, part.kind)
                continue
            own = range(wanted.start - part.first + 1, wanted.stop - part.first + 1)
            if own.start <= part.rows and own.stop > 1 and own:
                yield part, read_rows(path, part.kind, own)

    def texts(self, places: Places, numbers: Collection[int]) -> Iterator[tuple[int, str]]:
        """Rows and what they say, for people to read, as far as that can be read."""
        for part, rows in self.rows(places):
            for number, row in rows:
                if (number := part.first + number - 1) in numbers:
                    yield number, _legible(row)

    def _format_of(self, path: Path, kind: Kind) -> str:
        """The format's name; "" of a file without rows."""
        is_empty, has_messages = True, False
        names: dict[str, None] = {}
        votes: Counter[str] = Counter()
        for _, row in itertools.islice(read_rows(path, kind), _LOOKED_AT_ROWS):
            is_empty = False
            if isinstance(row, MalformedError):
                continue
            names.update(dict.fromkeys(row))
            with contextlib.suppress(MalformedError):
                mapped = renamed(row, self.columns)
                has_messages |= isinstance(mapped.get("chosen"), list)
                votes.update(formats_of(mapped))
        if is_empty or self.format != "auto":
            return "" if is_empty else self.format
        if votes:
            return votes.most_common(1)[0][0]
        # Where no row tells, each is told what it lacks of MiniMind's.
        if not names or has_messages:
            return "minimind"
        raise unknown_columns(path, list(names), self.columns)


def _legible(row: Row | MalformedError) -> str:
    """A row as text that can be written."""
    try:
        text = row.text if isinstance(row, MalformedError) else _as_json(row)
    except RecursionError:  # nested as deep as JSON may be read, and no deeper
        text = "(nested too deeply to be shown)"
    return text.encode(errors="replace").decode()


def _as_json(row: Row) -> str:
    return json.dumps(row, ensure_ascii=False, default=str)
