"""Incremental decoding of token ids that never splits a character."""

from __future__ import annotations

from collections.abc import Callable, Sequence

_UNFINISHED = "\N{REPLACEMENT CHARACTER}"
"""Placeholder that decoders write for bytes of an incomplete character."""


class TextStream:
    """Incremental decoder from token ids to pieces of text.

    A character that spans several tokens is returned with its last token. Each call decodes only
    the tokens since the last complete character, preceded by the tokens of the piece before them,
    because some decoders drop a space at the start of their input.

    Args:
        decode: maps token ids to text.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._ids: list[int] = []
        self._context = 0  # leading ids that only give the decoder context
        self._returned = 0  # characters of the decoded text that were returned already

    def add(self, number: int) -> str:
        """Return the text that a token completes; "" while a character is incomplete."""
        self._ids.append(number)
        text = self._decode(self._ids)
        whole = text.rstrip(_UNFINISHED)
        piece = whole[self._returned :]
        self._returned += len(piece)
        if whole == text:
            self._ids = self._ids[self._context :]
            self._context = len(self._ids)
            self._returned = len(self._decode(self._ids))
        return piece

    def rest(self) -> str:
        """Return the remaining text, including incomplete characters."""
        return self._decode(self._ids)[self._returned :]
