"""Taking out of a text what is nobody else's business: paths, file names, host names."""

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
"""As `Places.name` says where a row is."""
_QUOTED = re.compile(r"""'[^']*'|"[^"]*"|“[^”]*”""")


class Redactor:
    """Replaces every path, and every name that it was told of.

    Args:
        names: of hosts, users and files.
    """

    def __init__(self, names: Iterable[str]) -> None:
        known = sorted(filter(None, set(names)), key=len, reverse=True)
        whole_words = "|".join(map(re.escape, known))
        self._names = re.compile(rf"(?<!\w)(?:{whole_words})(?!\w)") if known else None

    def __call__(self, text: str) -> str:
        """The text without them."""
        text = _IN_A_FILE.sub(rf"\1{REDACTED}", _PATHS.sub(REDACTED, text))
        return self._names.sub(REDACTED, text) if self._names else text


def file_names(values: Iterable[object]) -> Iterable[str]:
    """What the files are called that some values are the absolute paths of."""
    for value in itertools.chain.from_iterable(v if isinstance(v, list) else [v] for v in values):
        if isinstance(value, str) and value.startswith("/"):
            name = value.rpartition("/")[2]
            if "." in name:  # a folder may be called like a word that stands everywhere
                yield name


def without_quotations(text: str) -> str:
    """A message without the pieces of data that it quotes."""
    return _QUOTED.sub(REDACTED, text)
