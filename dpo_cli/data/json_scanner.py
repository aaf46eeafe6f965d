"""Incremental reading of JSON values from a text that may be too long for memory."""

from __future__ import annotations

import io
import json
import re
from typing import Any, BinaryIO

from dpo_cli.data.rows import MAX_ROW_BYTES, TOO_LONG, TOO_MANY_VALUES, is_too_large

_CHUNK_CHARACTERS = 1 << 18
_CUT_CHARACTERS = 16  # a chunk may end inside an escape such as \ud83d\ude00
_MAX_BLANK_CHARACTERS = 1 << 30
_BLANK = re.compile(r"[ \t\r\n]*")


class Scanner:
    """Incremental reader of JSON values from a text that may be too long for memory."""

    def __init__(self, file: BinaryIO) -> None:
        # Invalid UTF-8 becomes lone surrogates, so that it spoils only the row that contains it.
        self._text = io.TextIOWrapper(file, "utf-8-sig", errors="surrogateescape", newline="")
        self._buffer, self._at, self._blank = "", 0, 0
        self._decode = json.JSONDecoder().raw_decode

    def next_character(self) -> str:
        """Peek at the next character that is not blank; "" at the end.

        Raises:
            ValueError: blank characters do not end.
        """
        while True:
            blank = _BLANK.match(self._buffer, self._at)
            self._at = blank.end() if blank else self._at
            if self._at < len(self._buffer):
                return self._buffer[self._at]
            self._blank += len(self._buffer)
            if self._blank > _MAX_BLANK_CHARACTERS:
                raise ValueError("blank characters that do not end")
            if not self._read_on():
                return ""

    def skip(self) -> None:
        """Consume the next character."""
        self._at += 1

    def value(self) -> tuple[Any, str]:
        """Read the next value.

        Returns:
            The value and its text.

        Raises:
            ValueError, RecursionError: there is no valid value, so the next one cannot be located.
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
                # A number at the end of the buffer may continue in the next chunk.
                if end < len(self._buffer) or not self._read_on():
                    text, self._at = self._buffer[self._at : end], end
                    return value, text
            if len(self._buffer) - self._at > MAX_ROW_BYTES:
                raise ValueError(TOO_LONG)
            if is_too_large(self._buffer[self._at :]):
                raise ValueError(TOO_MANY_VALUES)

    def _read_on(self) -> bool:
        rest = self._buffer[self._at :]
        piece = self._text.read(max(_CHUNK_CHARACTERS, len(rest)))
        self._buffer, self._at = rest + piece, 0
        return bool(piece)
