"""Sources of pairs: files, folders and data sets of the Hub, with consecutive row numbers.

Rows are numbered through all files of a source, so one integer identifies a row. `Places` turns the
number into what a reader can find: "line 7", or "row 7 of part-2.parquet".
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

from dpo_cli.data.columns import Columns, Row
from dpo_cli.data.file_kinds import Kind, kind_of
from dpo_cli.data.file_readers import count_numbers, read_rows
from dpo_cli.data.formats import FORMATS, PROMPTS, format_of, unknown_format
from dpo_cli.data.rows import MalformedError, Numbered
from dpo_cli.errors import DpoError, UsageError
from dpo_cli.files import PAIR_SUFFIXES, pair_files, sha256_file
from dpo_cli.hub.datasets import fetch_data
from dpo_cli.hub.download import is_on_hub
from dpo_cli.signatures import recognize_folder

_LOOKED_AT_ROWS = 100
_NAMED = 5
_PROGRESS_ROWS = 5000
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
        return _unit(self.kind)


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


@dataclass(frozen=True)
class Source:
    """Files of pairs, with their format and column names.

    Attributes:
        paths: files, folders of files, or names of data sets on the Hub.
        format: name of a format, or "auto" to detect it from the first rows of each file.
        columns: column names in the files, by the names that the formats use.
    """

    paths: tuple[Path, ...]
    format: str = "auto"
    columns: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return ", ".join(map(str, self.paths))

    @cached_property
    def files(self) -> list[tuple[int, Path]]:
        """All files, each with the index of its path in `paths`.

        Data sets on the Hub are downloaded if they are not cached.

        Raises:
            DpoError: a folder has no files of pairs, a file is named twice, or a data set cannot
                be downloaded.
        """
        files = []
        for number, path in enumerate(self.paths):
            if is_on_hub(path):
                files += [(number, file) for file in fetch_data(str(path)).paths]
                continue
            if saved := recognize_folder(path):
                raise saved.error(path)
            try:
                found = pair_files(path)
            except OSError as error:
                raise DpoError(
                    f"{path}: {error.strerror}", "Set data.data_path to a readable folder."
                ) from error
            if not found:
                raise DpoError(
                    f"{path}: the folder has no file of pairs",
                    f"Use files that end in {', '.join(PAIR_SUFFIXES)}.",
                )
            files += [(number, file) for file in found]
        # In the cache of the Hub, files of equal content are links to the same file.
        targets = [p if is_on_hub(self.paths[number]) else p.resolve() for number, p in files]
        counts = Counter(targets)
        if twice := [
            p for (_, p), target in zip(files, targets, strict=True) if counts[target] > 1
        ]:
            raise DpoError(
                f"{twice[0]} occurs twice in data.data_path",
                "Name it once; use data.mixture_weights to repeat its pairs.",
            )
        return files

    @property
    def names(self) -> list[str]:
        """Names of the files for users; full paths if two files have the same name."""
        names = [path.name for _, path in self.files]
        return names if len({*names}) == len(names) else list(map(self._full_name, self.files))

    def _full_name(self, file: tuple[int, Path]) -> str:
        number, path = file
        if not is_on_hub(self.paths[number]):
            return str(path)
        found = fetch_data(str(self.paths[number]))
        return f"{found.repository}/{path.relative_to(found.folder)}"

    def description(self, places: Places) -> str:
        """Return formats, kinds of files, and splits of data sets on the Hub, for users."""
        titles = [fetch_data(str(path)).title for path in self.paths if is_on_hub(path)]
        return "; ".join([places.description, *titles])

    def content(self) -> str:
        """Hash the file (hex SHA-256); for several files, hash their hashes in order."""
        digests = []
        for _, path in self.files:
            try:
                digests.append(sha256_file(path))
            except OSError as error:
                raise DpoError(
                    f"{path}: {error.strerror}", "Set data.data_path to a file of preference pairs."
                ) from error
        if len(digests) == 1:
            return digests[0]
        return hashlib.sha256("\n".join(digests).encode()).hexdigest()

    def identity(self) -> list[object]:
        """Return everything but the content of the files that decides the pairs."""
        kinds = [kind_of(path) for _, path in self.files]
        paths = [number for number, _ in self.files]
        return [self.format, sorted(self.columns.items()), kinds, paths]

    def look(self, on_progress: Callable[[int], None] = lambda rows: None) -> Places:
        """Detect kind and format of each file, and count its rows.

        Args:
            on_progress: called with the number of rows counted so far.

        Raises:
            DpoError: a file cannot be read or has no known format, or there is no row at all.
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
            raise DpoError(f"{self}: the file has no rows", "Write one preference pair per row.")
        return Places(tuple(parts))

    def rows(self, places: Places, wanted: range | None = None) -> Iterator[tuple[Part, Numbered]]:
        """Yield each file with its rows, numbered from 1 within the file.

        Args:
            places: result of `look`.
            wanted: numbers, through all files, of the rows to yield; None for all.
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
        """Yield the readable text of some rows by number."""
        for part, rows in self.rows(places):
            for number, row in rows:
                if (number := part.first + number - 1) in numbers:
                    yield number, _legible(row)

    def _format_of(self, path: Path, kind: Kind) -> str:
        """Return the name of the format; "" for a file without rows."""
        is_empty, has_messages = True, False
        unit = _unit(kind)
        rows: list[tuple[str, Row]] = []
        votes: Counter[str] = Counter()
        for number, row in itertools.islice(read_rows(path, kind), _LOOKED_AT_ROWS):
            is_empty = False
            if isinstance(row, MalformedError):
                continue
            rows.append((f"{unit} {number}", row))
            with contextlib.suppress(MalformedError, RecursionError):
                found = Columns(row, self.columns)
                is_whole = found.first(*PROMPTS) is None
                has_messages |= is_whole and isinstance(found.peek("chosen"), list)
                votes.update(filter(None, [format_of(found)]))
        if is_empty:
            return ""
        if self.format != "auto":
            name = self.format
        elif votes:
            name = votes.most_common(1)[0][0]
        elif not rows or has_messages:
            # If no row decides, read the file as MiniMind's: each row reports what it lacks.
            name = "minimind"
        else:
            raise unknown_format(path, rows, self.columns)
        self._require_read(path, name, [row for _, row in rows])
        return name

    def _require_read(self, path: Path, format: str, rows: Sequence[Row]) -> None:
        """Check that the format reads each column of `data.columns`.

        Raises:
            DpoError: naming the first column that no row reads.
        """
        read: set[str] = set()
        unread: set[str] = set()
        for row in rows if self.columns else ():
            with contextlib.suppress(MalformedError, RecursionError):
                found = Columns(row, self.columns)
                FORMATS[format].read(found)
                read |= found.read
                unread |= found.unread.keys()
        for name, column in self.columns.items():
            if column in unread - read:
                raise DpoError(
                    f"{path}: the format {format} does not read {column!r}, which"
                    f" data.columns.{name} names",
                    f"Remove data.columns.{name}, or set data.format to a format with this column.",
                )


def _unit(kind: Kind) -> str:
    return "line" if kind == "jsonl" else "row"


def _legible(row: Row | MalformedError) -> str:
    """Convert a row to text that can be printed."""
    try:
        text = row.text if isinstance(row, MalformedError) else _as_json(row)
    except RecursionError:  # nested too deeply to be written
        text = "(nested too deeply to show)"
    return text.encode(errors="replace").decode()


def _as_json(row: Row) -> str:
    return json.dumps(row, ensure_ascii=False, default=str)
