"""Number of tokens of a text, exactly or by an estimate, before a model is loaded."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from pathlib import Path

_TOKENIZER = "tokenizer.json"
_ASCII_PER_TOKEN = 3
"""Characters of ASCII text per token, on the safe side: English has about 4 with a large vocabulary
and 3 with MiniMind's 6,400 entries. Any other character counts as one token."""


def token_counter(folder: Path | None) -> Callable[[str], int]:
    """Return a function from a text to its number of tokens.

    Args:
        folder: directory of the tokenizer; the number is estimated from the characters if it is
            None, or has no readable tokenizer.json.
    """
    if folder is not None:
        with contextlib.suppress(Exception):  # the library raises `Exception` itself
            from tokenizers import Tokenizer

            tokenizer = Tokenizer.from_file(str(folder / _TOKENIZER))
            return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids)
    return estimate_tokens


def estimate_tokens(text: str) -> int:
    """Estimate the number of tokens of a text from its characters."""
    ascii_characters = sum(map(str.isascii, text))
    return len(text) - ascii_characters + math.ceil(ascii_characters / _ASCII_PER_TOKEN)
