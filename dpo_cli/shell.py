"""Command lines as texts that a user can read and paste into a shell."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterable

_PLAIN = re.compile(r"[\w@%+=:,./~-]+", re.ASCII)
_NOT_IN_DOUBLE_QUOTES = re.compile(r'["$`\\!]')


def program() -> str:
    """Return how the user calls `dpo`: "dpo" if the shell finds it, else its path.

    A path is that of the script in a virtual environment, as in ".venv/bin/dpo".
    """
    called = sys.argv[0] if sys.argv else ""
    if os.path.basename(called) != "dpo":  # python -m dpo_cli, or a script with the API
        return "dpo"
    found = shutil.which("dpo")
    if found and os.path.realpath(found) == os.path.realpath(called):
        return "dpo"
    return quote(min(os.path.relpath(called), os.path.abspath(called), key=len))


def quote(word: str) -> str:
    """Quote a word for the shell, with double quotes where they are enough.

    `shlex.quote` writes an apostrophe as '"'"', which is hard to read.
    """
    if _PLAIN.fullmatch(word) and not word.startswith("~"):
        return word
    if word and not _NOT_IN_DOUBLE_QUOTES.search(word):
        return f'"{word}"'
    return shlex.quote(word)


def join(words: Iterable[str]) -> str:
    """Quote words and join them with spaces."""
    return " ".join(map(quote, words))


def dpo_command(*words: str) -> str:
    """Return a command line of `dpo`, with the program as the user calls it."""
    return f"{program()} {join(words)}"
