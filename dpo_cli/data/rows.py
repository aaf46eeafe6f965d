"""Parsing of one row, and the reasons why a row is malformed."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Iterator
from typing import Any

MAX_ROW_BYTES = 1 << 25
"""Largest row: a file that decompresses to an endless row must not fill the memory."""
NOT_UTF_8 = "not UTF-8"
TOO_LONG = f"longer than {MAX_ROW_BYTES >> 20} MiB"
MAX_ROW_MEMORY = 4 * MAX_ROW_BYTES
"""Largest row in memory: 32 MiB of "[[],[],..." would be a gigabyte of Python objects."""
TOO_MANY_VALUES = "too many values for one row"
MAX_BLANK_LINES = 10_000_000
"""Limit on consecutive blank lines; a small compressed file can have any number."""
_OBJECT_BYTES, _VALUE_BYTES = 64, 32
_SMALL = 1 << 20


def estimated_memory(text: str | bytes) -> int:
    """Estimate the bytes that the values in a JSON or CSV text take in memory, from above."""
    if isinstance(text, str):
        marks = text.count("["), text.count("{"), text.count(",")
    else:
        marks = text.count(b"["), text.count(b"{"), text.count(b",")
    return len(text) + _OBJECT_BYTES * (marks[0] + marks[1]) + _VALUE_BYTES * marks[2]


def is_too_large(text: str | bytes) -> bool:
    """Return True if the values in a text would take too much memory."""
    return len(text) > _SMALL and estimated_memory(text) > MAX_ROW_MEMORY


class MalformedError(Exception):
    """Reason why a row is malformed, with the readable part of its text."""

    def __init__(self, reason: str, text: str = "") -> None:
        super().__init__(reason)
        self.text = text


Numbered = Iterator[tuple[int, dict[str, Any] | MalformedError]]
"""Rows with their numbers."""


def parse_line(raw: bytes) -> dict[str, Any]:
    """Parse one line of JSONL.

    Raises:
        MalformedError: the line is not a JSON object.
    """
    if is_too_large(raw):
        raise MalformedError(TOO_MANY_VALUES)
    try:
        row = json.loads(raw.decode("utf-8"))
        if b"\\u" in raw:
            json.dumps(row, ensure_ascii=False).encode()
    except UnicodeDecodeError as error:
        raise MalformedError(f"{NOT_UTF_8} (byte {error.start + 1} of the line)") from error
    except UnicodeEncodeError as error:
        raise MalformedError("an unpaired surrogate (\\ud800 to \\udfff) is not text") from error
    except json.JSONDecodeError as error:
        raise MalformedError(f"not JSON: {error.msg} (column {error.colno})") from error
    except RecursionError as error:
        raise MalformedError("JSON nested too deeply") from error
    except ValueError as error:  # an integer of more digits than Python converts
        raise MalformedError(f"unreadable JSON: {error}") from error
    if not isinstance(row, dict):
        raise MalformedError(f"expected a JSON object, got {kind_of_value(row)}")
    return row


def kind_of_value(value: Any) -> str:
    """Describe the type of a value in words, with the value of a number."""
    match value:
        case None:
            return "null"
        case bool():
            return f"a boolean ({str(value).lower()})"
        case int() | float():
            return f"a number ({reprlib.repr(value)})"
        case str():
            return "a text"
        case list():
            return "a list" if value else "an empty list"
        case dict():
            return "an object"
        case _:
            return f"a {type(value).__name__}"
