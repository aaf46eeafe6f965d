"""Detection of the kind of a row file by its content.

Files of other kinds get an error with their kind. CSV with unknown column names is recognized by
the name of the file.
"""

from __future__ import annotations

import codecs
import csv
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, Literal

from dpo_cli.data.columns import PROMPTS, QUESTIONS
from dpo_cli.data.compression import opened, reading
from dpo_cli.data.json_scanner import Scanner
from dpo_cli.data.messages import is_message
from dpo_cli.data.rows import TOO_LONG
from dpo_cli.errors import DpoError
from dpo_cli.shell import quote
from dpo_cli.signatures import HEAD_BYTES, read_head, refuse

Kind = Literal["jsonl", "json", "objects", "csv", "parquet"]
"""Kind of a row file: lines of JSON, a JSON array, JSON objects over several lines, a table."""

_COMPRESSED = ("gzip", "zstd")
_TABLES = (".csv", ".tsv", ".tab")
_SEPARATORS = ",;\t|"
_DECLARATION = re.compile(r"sep=(.)\s*\Z", re.IGNORECASE)
"""First line by which Excel declares the separator."""
_SIDES = {"chosen", "rejected"}
_BEGINS_AN_ARRAY = re.compile(rb"\[\s*(\{|\]\s*\Z)")
_BEGINS_A_CONTAINER = re.compile(
    rb'\{\s*"[^"]*"\s*:\s*(\{\s*"0"\s*:|\[\s*"|\[\s*\{(?!\s*"(role|from|content|value)"))'
)
"""First key of an object with columns, or with rows that are no messages."""
_ROW_KEYS = {*_SIDES, *PROMPTS, *QUESTIONS, "context"}
"""Keys of a row that may also contain lists of objects."""
_ERROR_KEYS = ("error", "errors", "detail", "message")
_MAX_ERROR_KEYS = 3
_PRINT_ROWS = (
    "Convert it: python -c \"import json, sys; d = json.load(open(sys.argv[1], encoding='utf-8'));"
    ' [print(json.dumps(r)) for r in {rows}]" {path} > {path}.jsonl'
)


def kind_of(path: Path) -> Kind:
    """Detect the kind of a row file.

    Raises:
        DpoError: the file cannot be read, or is of a known unsupported kind.
    """
    with reading(path):
        head = read_head(path)
    refuse(path, head, ("parquet", *_COMPRESSED))
    if head.startswith(b"PAR1"):
        return "parquet"
    with opened(path) as file:
        head = file.read(HEAD_BYTES)
    if head.startswith(b"PAR1"):
        raise DpoError(
            f"{path}: a compressed Parquet file",
            "Decompress it; Parquet compresses its columns itself.",
        )
    refuse(path, head)
    text = head.removeprefix(codecs.BOM_UTF8).lstrip()
    if _BEGINS_AN_ARRAY.match(text):
        return "json"
    if text.startswith(b"{"):
        with opened(path) as file:
            return _kind_of_objects(path, file, text)
    is_table = any(suffix.lower() in _TABLES for suffix in path.suffixes[-2:])
    return "csv" if is_table or _has_header(text) else "jsonl"


def separator_of(line: str) -> tuple[str, bool]:
    """Detect the separator of a table.

    Args:
        line: the first line, mostly the header.

    Returns:
        The separator, and True if the line only declares it ("sep=;").
    """
    if declared := _DECLARATION.match(line):
        return declared[1], True
    # Text in quotes may contain the other separators. The first of equal counts is the comma.
    unquoted = re.sub(r'"[^"]*"', "", line)
    return max(_SEPARATORS, key=unquoted.count), False


def _has_header(text: bytes) -> bool:
    """Return True if the first line names the columns of preference pairs."""
    line = text.split(b"\n", 1)[0].decode("utf-8", errors="replace").rstrip("\r\n")
    separator, is_declaration = separator_of(line)
    if is_declaration:
        return True
    try:
        cells = next(csv.reader([line], delimiter=separator), [])
    except csv.Error:
        return False
    return {cell.strip().lower() for cell in cells} >= _SIDES


def _kind_of_objects(path: Path, file: BinaryIO, head: bytes) -> Kind:
    """Distinguish JSONL from objects over several lines, by the first object.

    Args:
        path, file: the file.
        head: first bytes of the text.

    Raises:
        DpoError: the file is a single object that contains the rows.
    """
    scanner = Scanner(file)
    scanner.next_character()
    try:
        value, text = scanner.value()
    except (ValueError, RecursionError) as error:
        is_too_large = str(error) == TOO_LONG
        if is_too_large and _BEGINS_A_CONTAINER.match(head):  # a whole data set on one line
            raise DpoError(
                f"{path} is one JSON object with rows or columns in it, expected a row per line",
                "Write one row per line; with pandas: to_json(FILE, orient='records', lines=True).",
            ) from None
        return "jsonl"  # the reader of JSONL names the line
    following = scanner.next_character()
    if not following:
        _refuse_container(path, value)
    return "objects" if "\n" in text.strip() or following == "," else "jsonl"


def _refuse_container(path: Path, value: dict[str, Any]) -> None:
    """Refuse a file whose only object is no row, with a command that writes the rows.

    Raises:
        DpoError: the object contains rows, columns or an error message.
    """
    if value.keys() >= _SIDES and not _is_table(list(value.values())):
        return
    is_row = bool(_ROW_KEYS & value.keys())
    failure = next((str(value[key]) for key in _ERROR_KEYS if key in value), "")
    if failure and len(value) <= _MAX_ERROR_KEYS and not is_row:
        raise DpoError(
            f'{path} is an error message, not rows: "{failure[:80]}"',
            "Download the file itself; the link may need a login.",
        )
    columns, rows = value.get("columns"), value.get("data")
    lists = [name for name, each in value.items() if _is_rows(each)] if not is_row else []
    if isinstance(columns, list) and isinstance(rows, list) and not lists:
        what, expression = "columns and data", "(dict(zip(d['columns'], r)) for r in d['data'])"
    elif lists:
        name = next((name for name in ("rows", "data", "train") if name in lists), lists[0])
        shown = ", ".join(map(repr, lists[:5]))
        what, expression = f"rows below {shown}", f"d[{name!r}]"
        if "row" in value[name][0]:
            expression = f"(r['row'] for r in d[{name!r}])"
    elif _is_table(list(value.values())):
        what = "rows by column"
        of_column = "c.values() if isinstance(c, dict) else c"
        expression = f"(dict(zip(d, r)) for r in zip(*({of_column} for c in d.values())))"
    elif value and all(key.isdigit() and isinstance(each, dict) for key, each in value.items()):
        what, expression = "rows by number", "d.values()"
    else:
        return
    raise DpoError(
        f"{path} is one JSON object with {what}, expected a row per line",
        _PRINT_ROWS.replace("{rows}", expression).replace("{path}", quote(str(path))),
    )


def _is_rows(value: Any) -> bool:
    """Return True for a list of objects that are no messages."""
    return isinstance(value, list) and bool(value) and all(map(_is_plain_object, value))


def _is_plain_object(value: Any) -> bool:
    return isinstance(value, dict) and not is_message(value)


def _is_table(columns: Sequence[Any]) -> bool:
    """Return True for columns of one length: lists of no messages, or objects by row number."""
    if not columns or not all(isinstance(column, list | dict) for column in columns):
        return False
    if all(isinstance(column, dict) for column in columns):
        keys = columns[0].keys()
        is_numbered = bool(keys) and all(key.isdigit() for key in keys)
        return is_numbered and all(column.keys() == keys for column in columns)
    same = {len(column) for column in columns if isinstance(column, list)}
    if len(same) != 1 or same == {0} or any(isinstance(column, dict) for column in columns):
        return False
    return not any(is_message(cell) for column in columns for cell in column)
