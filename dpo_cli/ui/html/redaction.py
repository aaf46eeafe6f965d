"""Removal of paths, file names and host names from texts."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable

REDACTED = "[redacted]"

_PATHS = re.compile(
    r"""(?<![\w.])(?:~|\.{1,2})?/[^\s"'<>,;:()\]]+"""  # /data/pairs.jsonl, ~/x, ./x
    r"""|\b[\w.-]+(?:/[\w.-]+)*/[\w-]+\.\w{1,11}\b"""  # data/pairs.jsonl
)
_IN_A_FILE = re.compile(r"((?:line|row) \d+ of )[^,;:()]+?(?= and (?:line|row) |[,;:()]|$)")
"""Location of a row, as formatted by `Places.name`."""
_QUOTED = re.compile(r"""'[^']*'|"[^"]*"|“[^”]*”""")


class Redactor:
    """Replaces all paths and the given names in a text.

    Args:
        names: names of hosts, users and files.
    """

    def __init__(self, names: Iterable[str]) -> None:
        # Longest first: of two names, the regular expression takes the first that matches.
        known = sorted(filter(None, set(names)), key=len, reverse=True)
        whole_words = "|".join(map(re.escape, known))
        self._names = re.compile(rf"(?<!\w)(?:{whole_words})(?!\w)") if known else None

    def __call__(self, text: str) -> str:
        """Return the text with paths and names replaced."""
        text = _IN_A_FILE.sub(rf"\1{REDACTED}", _PATHS.sub(REDACTED, text))
        return self._names.sub(REDACTED, text) if self._names else text


def file_names(values: Iterable[object]) -> Iterable[str]:
    """Yield the file names of all values that are absolute paths."""
    for value in itertools.chain.from_iterable(v if isinstance(v, list) else [v] for v in values):
        if isinstance(value, str) and value.startswith("/"):
            name = value.rpartition("/")[2]
            if "." in name:  # a folder may have the name of a common word, such as "data"
                yield name


def without_quotations(text: str) -> str:
    """Replace quotations, which may contain pieces of the data."""
    return _QUOTED.sub(REDACTED, text)
