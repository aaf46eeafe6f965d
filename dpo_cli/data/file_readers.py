"""Readers of row files: JSONL, JSON, CSV or Parquet, compressed or not.

Rows are read one after another in bounded memory, also from hostile files.
`dpo_cli.data.file_kinds` detects the kind of a file.
"""

from __future__ import annotations

import codecs
import csv
import io
import itertools
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from dpo_cli.data.compression import opened, opened_parquet, reading
from dpo_cli.data.csv_lines import RecordLines
from dpo_cli.data.file_kinds import Kind, separator_of
from dpo_cli.data.json_scanner import Scanner
from dpo_cli.data.parquet_rows import parquet_rows
from dpo_cli.data.rows import (
    MAX_BLANK_LINES,
    MAX_ROW_BYTES,
    NOT_UTF_8,
    TOO_LONG,
    MalformedError,
    Numbered,
    kind_of_value,
    parse_line,
)
from dpo_cli.errors import DpoError

_SHOWN_BYTES = 1000
_MAX_SKIPPED_BYTES = 1 << 30
"""Limit on the bytes of skipped rows that are too long; a small compressed file can have many."""


class _Record(NamedTuple):
    """Record of a CSV file, with the header of the file."""

    header: list[str]
    cells: list[str]


_Raw = bytes | _Record | dict[str, Any] | MalformedError


def count_numbers(path: Path, kind: Kind) -> Iterator[int]:
    """Count up to the number of the last row: all lines of JSONL, rows of other kinds.

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
    """Read the rows of a file with their numbers, from 1. Blank lines count but yield no row.

    Args:
        path, kind: the file.
        wanted: numbers of the rows to yield; None for all.

    Yields:
        (number, columns of the row), or (number, the reason why it cannot be read).

    Raises:
        DpoError: the file is damaged such that later rows cannot be separated, or a package that
            reads it is not installed.
    """
    if kind == "parquet":
        with reading(path), opened_parquet(path) as file:
            yield from parquet_rows(file, wanted)
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
    """Iterate over the raw rows of a text file with their numbers, without parsing JSONL or CSV."""
    match kind:
        case "jsonl":
            return _lines(path, file)
        case "csv":
            return _records(path, file)
        case "objects":
            return _explained(path, _objects_in_text(path, file))
        case _:
            return _explained(path, _elements(path, file))


def _lines(path: Path, file: BinaryIO) -> Iterator[tuple[int, bytes | MalformedError]]:
    """Split at newlines only (U+2028 is text), and strip a byte order mark."""
    line = blank = skipped_bytes = 0
    while raw := file.readline(MAX_ROW_BYTES):
        line += 1
        blank = 0 if raw != b"\n" else blank + 1
        if blank > MAX_BLANK_LINES:
            raise _endless(path, f"more than {MAX_BLANK_LINES:,} consecutive blank lines")
        if len(raw) == MAX_ROW_BYTES and not raw.endswith(b"\n"):
            rest = raw
            while rest and not rest.endswith(b"\n"):
                skipped_bytes += len(rest)
                if skipped_bytes > _MAX_SKIPPED_BYTES:
                    raise _endless(path, f"line {line} does not end, or there are many such lines")
                rest = file.readline(MAX_ROW_BYTES)
            yield line, MalformedError(TOO_LONG, _legible(raw[:_SHOWN_BYTES]))
        else:
            yield line, raw.removeprefix(codecs.BOM_UTF8) if line == 1 else raw


def _parsed(raw: _Raw) -> dict[str, Any] | MalformedError | None:
    """Parse a raw row, or return why it is malformed; None for a blank line."""
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


def _explained(path: Path, rows: Numbered) -> Numbered:
    """Convert an error between two rows to one that names the file."""
    try:
        yield from rows
    except ValueError as error:
        raise _no_array(path, str(error)) from error


def _elements(path: Path, file: BinaryIO) -> Numbered:
    """Iterate over the elements of a JSON array."""
    scanner, number = Scanner(file), 0
    scanner.next_character()
    scanner.skip()
    while (character := scanner.next_character()) != "]":
        if number and character == ",":
            scanner.skip()
            scanner.next_character()
        elif number:
            missing = f"no comma or ] after row {number}" if character else "the array has no end"
            raise _no_array(path, missing)
        number += 1
        try:
            row, text = scanner.value()
        except (ValueError, RecursionError) as error:
            reason = getattr(error, "msg", None) or str(error)
            raise _no_array(path, f"row {number}: {reason}") from error
        yield number, _checked(row, text)
    scanner.skip()
    if scanner.next_character():
        raise _no_array(path, "there is text after the array")


def _objects_in_text(path: Path, file: BinaryIO) -> Numbered:
    """Iterate over JSON objects that follow one another, each over several lines."""
    scanner, number = Scanner(file), 0
    while scanner.next_character():
        number += 1
        try:
            row, text = scanner.value()
        except (ValueError, RecursionError) as error:
            reason = getattr(error, "msg", None) or str(error)
            raise DpoError(
                f"{path}: JSON object {number} cannot be read: {reason}",
                "Fix it, or write one row per line (JSONL), where a broken row affects only"
                " itself.",
            ) from error
        yield number, _checked(row, text)
        if scanner.next_character() == ",":
            scanner.skip()


def _checked(row: Any, text: str) -> dict[str, Any] | MalformedError:
    try:
        text.encode()
        if "\\u" in text:
            json.dumps(row, ensure_ascii=False).encode()
    except (UnicodeEncodeError, RecursionError):
        return MalformedError(f"{NOT_UTF_8}, or an unpaired surrogate", text)
    if not isinstance(row, dict):
        return MalformedError(f"expected a JSON object, got {kind_of_value(row)}", text)
    return row


def _records(path: Path, file: BinaryIO) -> Iterator[tuple[int, _Record]]:
    """Iterate over the records of a CSV file with a header."""
    csv.field_size_limit(MAX_ROW_BYTES)
    text = io.TextIOWrapper(file, "utf-8-sig", errors="surrogateescape", newline="")
    lines = RecordLines(text)
    header: list[str] | None = None
    number = 0
    try:
        first = next((line for line in lines if line.strip()), "")
        separator, is_declaration = separator_of(first)
        rest = lines if is_declaration else itertools.chain([first], lines)
        records = csv.reader(rest, delimiter=separator, strict=True)
        for cells in records:
            lines.begin_record()
            if header is None:
                header = _header(path, cells) or None
            elif cells:
                number += 1
                yield number, _Record(header, cells)
    except csv.Error as error:
        raise DpoError(
            f"{path}: invalid CSV after row {number}: {error}",
            'Quote texts that contain quotes, commas or newlines, and write a quote as "".',
        ) from error


def _header(path: Path, cells: list[str]) -> list[str]:
    counts = Counter(cells)
    if twice := [name for name in cells if name and counts[name] > 1]:
        raise DpoError(
            f"{path}: two columns are named {twice[0]!r}", "Give each column a unique name."
        )
    return cells


def _columns(record: _Record) -> dict[str, Any] | MalformedError:
    """Convert a record to a row of texts."""
    header, cells = record
    if len(cells) != len(header):
        why = f"{len(cells)} cells, but the header has {len(header)}"
        return MalformedError(why, ",".join(cells))
    try:
        "".join(cells).encode()
    except UnicodeEncodeError:
        return MalformedError(NOT_UTF_8, ",".join(cells))
    return dict(zip(header, cells, strict=True))


def _endless(path: Path, why: str) -> DpoError:
    return DpoError(f"{path}: {why}", "Write one preference pair per line.")


def _no_array(path: Path, why: str) -> DpoError:
    return DpoError(
        f"{path} is not a valid JSON array of rows: {why}",
        "Fix it, or write one row per line (JSONL), where a broken row affects only itself.",
    )
