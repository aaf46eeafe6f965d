"""Sources of pairs: files, folders and data sets of the Hub, with consecutive row numbers.

Rows are numbered through all files of a source, so one integer identifies a row. `Places` turns the
number into a name that a reader can find: "line 7", or "row 7 of part-2.parquet".
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from dpo_cli.data.columns import PROMPTS, Columns, Row
from dpo_cli.data.file_kinds import Kind, kind_of
from dpo_cli.data.file_readers import count_numbers, read_rows
from dpo_cli.data.formats import FORMATS, format_of, unknown_format
from dpo_cli.data.places import Part, Places, unit_of
from dpo_cli.data.rows import MalformedError, Numbered
from dpo_cli.errors import DpoError
from dpo_cli.files import PAIR_SUFFIXES, pair_files, sha256_file
from dpo_cli.hub.datasets import fetch_data
from dpo_cli.hub.download import is_on_hub
from dpo_cli.signatures import recognize_folder

_LOOKED_AT_ROWS = 100
_FIRST_ROWS = 5
_PROGRESS_ROWS = 5000


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
        unit = unit_of(kind)
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


def looks_like_pairs(path: Path) -> bool:
    """Return True if one of the first rows of a file has the columns of a format.

    Raises:
        DpoError: the file cannot be read, or is of a kind that is not supported.
    """
    for _, row in itertools.islice(read_rows(path, kind_of(path)), _FIRST_ROWS):
        if isinstance(row, MalformedError):
            continue
        with contextlib.suppress(MalformedError, RecursionError):
            if format_of(Columns(row, {})):
                return True
    return False


def _legible(row: Row | MalformedError) -> str:
    """Convert a row to text that can be printed."""
    try:
        text = row.text if isinstance(row, MalformedError) else _as_json(row)
    except RecursionError:  # nested too deeply to be written
        text = "(nested too deeply to show)"
    return text.encode(errors="replace").decode()


def _as_json(row: Row) -> str:
    return json.dumps(row, ensure_ascii=False, default=str)
