"""Text as its tokens come: never half a character."""

from __future__ import annotations

from collections.abc import Callable, Sequence

_UNFINISHED = "\N{REPLACEMENT CHARACTER}"
"""What decoding makes of bytes that are no character, or not yet one."""


class TextStream:
    """Turns token ids into pieces of text, one after another.

    A token may end within a character: it is told with the token that completes it. Only the tokens
    since the last whole character are decoded, after those told before them, since some decoders
    drop a space at the beginning of what they are given.

    Args:
        decode: the text of token ids.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._ids: list[int] = []
        self._context = 0  # of the ids: those that are there for the decoder's sake
        self._told = 0  # characters of their text

    def add(self, number: int) -> str:
        """What a token adds; "" where no character is whole yet."""
        self._ids.append(number)
        text = self._decode(self._ids)
        whole = text.rstrip(_UNFINISHED)
        piece = whole[self._told :]
        self._told += len(piece)
        if whole == text:
            self._ids = self._ids[self._context :]
            self._context = len(self._ids)
            self._told = len(self._decode(self._ids))
        return piece

    def rest(self) -> str:
        """What is left at the end, characters that never became whole among it."""
        return self._decode(self._ids)[self._told :]
