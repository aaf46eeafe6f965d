"""Files of rows as they lie on a disk: JSONL, a JSON array, CSV or Parquet, compressed or not.

What a file is, its content says, but for CSV, which is known by its name. Rows come one after
another in bounded memory, whatever the file was made to do to it.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

from dpo_cli.data.compression import opened, opened_parquet, reading
from dpo_cli.data.rows import (
    MAX_ROW_BYTES,
    TOO_LONG,
    MalformedError,
    kind_of_value,
    parse_line,
)
from dpo_cli.errors import DpoError

_CHUNK_CHARACTERS = 1 << 18
_CUT_CHARACTERS = 16  # \ud83d\ude00 and its like may be cut by the end of a chunk
_PARQUET_ROWS = 64
_HEAD_BYTES = 4096
_SHOWN_BYTES = 1000
_BLANK = re.compile(r"[ \t\r\n]*")
_BEGINS_AN_ARRAY = re.compile(rb"(\xef\xbb\xbf)?\s*\[\s*(\{|\]\s*\Z)")
_BEGINS_AN_OBJECT = re.compile(rb'(\xef\xbb\xbf)?\s*\{\s*\n\s*"')
_PARQUET, _ARROW = b"PAR1", b"ARROW1"

Kind = Literal["jsonl", "json", "csv", "parquet"]
Numbered = Iterator[tuple[int, "dict[str, Any] | MalformedError"]]


class _Record(NamedTuple):
    """A record of a CSV file, and the header of the file."""

    header: list[str]
    cells: list[str]


_Raw = bytes | _Record | dict[str, Any] | MalformedError


def kind_of(path: Path) -> Kind:
    """What a file of rows is.

    Raises:
        DpoError: it cannot be read, or is known to be something else.
    """
    with reading(path), path.open("rb") as file:
        magic = file.read(6)
    if magic.startswith(_PARQUET):
        return "parquet"
    if magic == _ARROW:
        raise DpoError(
            f"{path}: Arrow's own format is not read", "write it as Parquet, by Dataset.to_parquet"
        )
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    if ".csv" in suffixes:
        return "csv"
    with opened(path) as file:
        head = file.read(_HEAD_BYTES)
    if head.startswith(_PARQUET):
        raise DpoError(
            f"{path}: a Parquet file in an archive", "decompress it: its columns are compressed"
        )
    if ".json" in suffixes and _BEGINS_AN_OBJECT.match(head):
        raise DpoError(
            f"{path}: one JSON object, where a list of rows was expected",
            "write the list alone: [{...}, {...}]; or one row on each line (JSONL)",
        )
    return "json" if _BEGINS_AN_ARRAY.match(head) else "jsonl"


def count_numbers(path: Path, kind: Kind) -> Iterator[int]:
    """Counts up to the number of the last row: lines of JSONL, blank ones too; rows of all else.

    Raises:
        DpoError: see `read_rows`.
    """
    if kind == "parquet":
        with reading(path), opened_parquet(path) as file:
            yield file.metadata.num_rows
        return
    with opened(path) as file:
        for number, _ in _numbered(path, kind, file):
            yield number


def read_rows(path: Path, kind: Kind, wanted: range | None = None) -> Numbered:
    """The rows of a file with their numbers, from 1; blank lines have a number and no row.

    Args:
        path, kind: of the file.
        wanted: the numbers of those to give; None for all.

    Yields:
        Numbers, and the columns of the row, or what keeps them from being read.

    Raises:
        DpoError: the file is damaged, where the rows behind the damage cannot be told apart; or a
            package that it needs is not installed.
    """
    if kind == "parquet":
        with reading(path), opened_parquet(path) as file:
            yield from _batches(file, wanted)
        return
    with opened(path) as file:
        for number, row in _numbered(path, kind, file):
            if wanted is not None and number >= wanted.stop:
                return
            if wanted is not None and number not in wanted:
                continue
            parsed = _parsed(row)
            if parsed is not None:
                yield number, parsed


def _numbered(path: Path, kind: Kind, file: BinaryIO) -> Iterator[tuple[int, _Raw]]:
    """Rows of a file that is no Parquet, with their numbers, and no more done than it takes."""
    match kind:
        case "jsonl":
            return _lines(file)
        case "csv":
            return _records(path, file)
        case _:
            return _elements(path, file)


def _lines(file: BinaryIO) -> Iterator[tuple[int, bytes | MalformedError]]:
    """Lines end at a newline and nowhere else: U+2028 is text. A byte order mark is no text."""
    line = 0
    while raw := file.readline(MAX_ROW_BYTES):
        line += 1
        if len(raw) == MAX_ROW_BYTES and not raw.endswith(b"\n"):
            while (rest := file.readline(MAX_ROW_BYTES)) and not rest.endswith(b"\n"):
                pass
            yield line, MalformedError(TOO_LONG, _legible(raw[:_SHOWN_BYTES]))
        else:
            yield line, raw.removeprefix(b"\xef\xbb\xbf") if line == 1 else raw


def _parsed(raw: _Raw) -> dict[str, Any] | MalformedError | None:
    """A row, or what keeps it from being one; None for a blank line."""
    if isinstance(raw, _Record):
        return _columns(raw)
    if not isinstance(raw, bytes):
        return raw
    if not raw.strip():
        return None
    try:
        return parse_line(raw)
    except MalformedError as error:
        return MalformedError(str(error), _legible(raw))


def _legible(raw: bytes) -> str:
    return raw.decode("utf-8", errors="replace").strip()


class _Scanner:
    """Takes one value after another from JSON that is too long to be held."""

    def __init__(self, file: BinaryIO) -> None:
        # What is not UTF-8 stays apart from what is, and spoils its own row alone.
        self._text = io.TextIOWrapper(file, "utf-8-sig", errors="surrogateescape", newline="")
        self._buffer, self._at = "", 0
        self._decode = json.JSONDecoder().raw_decode

    def next_character(self) -> str:
        """The next one that is not blank, which stays where it is; nothing at the end."""
        while True:
            blank = _BLANK.match(self._buffer, self._at)
            self._at = blank.end() if blank else self._at
            if self._at < len(self._buffer):
                return self._buffer[self._at]
            if not self._read_on():
                return ""

    def skip(self) -> None:
        """Pass over the next character."""
        self._at += 1

    def value(self) -> tuple[Any, str]:
        """The next value, and the text that it was.

        Raises:
            ValueError: there is none; nobody knows where the next one begins.
            RecursionError: likewise.
        """
        while True:
            try:
                value, end = self._decode(self._buffer, self._at)
            except json.JSONDecodeError as error:
                is_cut = error.msg.startswith("Unterminated string") or (
                    error.pos >= len(self._buffer) - _CUT_CHARACTERS
                )
                if not is_cut or not self._read_on():
                    raise
            else:
                # A number at the end of the buffer may go on behind it.
                if end < len(self._buffer) or not self._read_on():
                    text, self._at = self._buffer[self._at : end], end
                    return value, text
            if len(self._buffer) - self._at > MAX_ROW_BYTES:
                raise ValueError(TOO_LONG)

    def _read_on(self) -> bool:
        rest = self._buffer[self._at :]
        piece = self._text.read(max(_CHUNK_CHARACTERS, len(rest)))
        self._buffer, self._at = rest + piece, 0
        return bool(piece)


def _elements(path: Path, file: BinaryIO) -> Numbered:
    """The elements of one JSON array."""
    scanner, number = _Scanner(file), 0
    scanner.next_character()
    scanner.skip()
    while (character := scanner.next_character()) != "]":
        if number and character == ",":
            scanner.skip()
            scanner.next_character()
        elif number:
            what = f"no comma and no ] behind row {number}" if character else "the array has no end"
            raise _no_array(path, what)
        number += 1
        try:
            row, text = scanner.value()
        except (ValueError, RecursionError) as error:
            told = getattr(error, "msg", None) or str(error)
            raise _no_array(path, f"row {number}: {told}") from error
        yield number, _checked(row, text)
    scanner.skip()
    if scanner.next_character():
        raise _no_array(path, "something follows the array")


def _checked(row: Any, text: str) -> dict[str, Any] | MalformedError:
    try:
        text.encode()
        if "\\u" in text:
            json.dumps(row, ensure_ascii=False).encode()
    except (UnicodeEncodeError, RecursionError):
        return MalformedError("not UTF-8, or half a surrogate pair", text)
    if not isinstance(row, dict):
        return MalformedError(f"a JSON object was expected, not {kind_of_value(row)}", text)
    return row


def _records(path: Path, file: BinaryIO) -> Iterator[tuple[int, _Record]]:
    """The records of a CSV file with a header."""
    csv.field_size_limit(MAX_ROW_BYTES)
    text = io.TextIOWrapper(file, "utf-8-sig", errors="surrogateescape", newline="")
    records = csv.reader(iter(lambda: text.readline(MAX_ROW_BYTES), ""), strict=True)
    header: list[str] | None = None
    number = 0
    try:
        for cells in records:
            if header is None:
                header = _header(path, cells) or None
            elif cells:
                number += 1
                yield number, _Record(header, cells)
    except csv.Error as error:
        raise DpoError(
            f"{path}: not CSV behind row {number}: {error}",
            'put texts with quotes, commas or newlines in quotes, and write a quote as ""',
        ) from error


def _header(path: Path, cells: list[str]) -> list[str]:
    """The names of the columns."""
    if twice := [name for name in cells if name and cells.count(name) > 1]:
        raise DpoError(
            f"{path}: two columns are called {twice[0]!r}", "give each a name of its own"
        )
    return cells


def _columns(record: _Record) -> dict[str, Any] | MalformedError:
    """A row of a record; a list of messages stands in a cell as JSON."""
    header, cells = record
    if len(cells) != len(header):
        why = f"{len(cells)} cells, where the header has {len(header)}"
        return MalformedError(why, ",".join(cells))
    try:
        return {name: _cell(cell) for name, cell in zip(header, cells, strict=True)}
    except UnicodeEncodeError:
        return MalformedError("not UTF-8", ",".join(cells))
    except MalformedError as error:
        return MalformedError(str(error), ",".join(cells))


def _cell(cell: str) -> Any:
    cell.encode()
    begins = cell[:2]
    if begins == "[{" or begins == '{"':
        if cell.startswith("[{'"):
            raise MalformedError("a list as Python writes it; write it by json.dumps")
        with contextlib.suppress(ValueError, RecursionError):
            value = json.loads(cell)
            json.dumps(value, ensure_ascii=False).encode()
            if _holds_messages(value):
                return value
    return cell


def _holds_messages(value: Any) -> bool:
    messages = value if isinstance(value, list) else [value]
    return all(isinstance(each, dict) and each.keys() & {"role", "from"} for each in messages)


def _batches(file: Any, wanted: range | None) -> Numbered:
    """The rows of a Parquet file; groups of rows that nobody wants are not read."""
    first = 1
    for group in range(file.metadata.num_row_groups):
        rows = file.metadata.row_group(group).num_rows
        if wanted is None or (first < wanted.stop and wanted.start < first + rows):
            number = first
            for batch in file.iter_batches(batch_size=_PARQUET_ROWS, row_groups=[group]):
                for row in _objects(batch):
                    if wanted is None or number in wanted:
                        yield number, row
                    number += 1
        first += rows


def _objects(batch: Any) -> Iterator[dict[str, Any] | MalformedError]:
    """The rows of a table; one by one where a single one is too long, or not to be read."""
    rows, why = None, TOO_LONG
    if batch.nbytes <= MAX_ROW_BYTES:
        try:
            rows = batch.to_pylist()
        except (ValueError, OverflowError) as error:  # not UTF-8, or a time that Python has not
            why = f"cannot be read: {error}"[:200]
    if rows is not None:
        for row in rows:
            yield {name: _without_nulls(each) for name, each in row.items()}
    elif len(batch) == 1:
        yield MalformedError(why)
    else:
        for at in range(len(batch)):
            yield from _objects(batch.slice(at, 1))


def _without_nulls(value: Any) -> Any:
    """A column's type gives each message the keys of all others; what it does not have is null."""
    if isinstance(value, list):
        return [_without_nulls(each) for each in value]
    if isinstance(value, dict):
        return {name: _without_nulls(each) for name, each in value.items() if each is not None}
    return value


def _no_array(path: Path, why: str) -> DpoError:
    return DpoError(
        f"{path} is no JSON array of rows: {why}",
        "mend it; or write one row on each line (JSONL), where a broken row spoils itself alone",
    )
