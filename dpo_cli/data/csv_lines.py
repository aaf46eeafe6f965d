"""Lines of a CSV file, with a limit on the size of a record."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator

from dpo_cli.data.rows import (
    MAX_BLANK_LINES,
    MAX_ROW_BYTES,
    MAX_ROW_MEMORY,
    TOO_LONG,
    TOO_MANY_VALUES,
    estimated_memory,
)


class RecordLines:
    """Iterator over the lines of a CSV file that bounds the size of a record.

    The `csv` module reads lines until a record is complete. A record has as many lines as its
    quotes contain, and as many cells as fit.
    """

    def __init__(self, text: io.TextIOWrapper) -> None:
        self._text = text
        self._blank = 0
        self.begin_record()

    def begin_record(self) -> None:
        """Reset the counters at the start of a record."""
        self._characters = self._memory = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._text.readline(MAX_ROW_BYTES)
        if not line:
            raise StopIteration
        self._characters += len(line)
        self._memory += estimated_memory(line)
        self._blank = self._blank + 1 if line in ("\n", "\r\n") else 0
        if self._blank > MAX_BLANK_LINES:
            raise csv.Error(f"more than {MAX_BLANK_LINES:,} consecutive blank lines")
        if self._characters > MAX_ROW_BYTES:
            raise csv.Error(f"a record is {TOO_LONG}")
        if self._memory > MAX_ROW_MEMORY:
            raise csv.Error(TOO_MANY_VALUES)
        return line
