"""A look at the first rows of a source, for proposals before anything else is known."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from dpo_cli.data.file_kinds import kind_of
from dpo_cli.data.file_readers import read_rows
from dpo_cli.data.messages import Message
from dpo_cli.data.pairs import PreferencePair, read_pairs
from dpo_cli.data.rows import MalformedError
from dpo_cli.data.sources import Source
from dpo_cli.hub.datasets import fetch_first
from dpo_cli.hub.download import is_on_hub

_FIRST_ROWS = 200
_TOKENS_PER_MESSAGE = 8
"""Tokens that a chat template adds to a message, about."""


@dataclass(frozen=True)
class Preview:
    """First rows of a source.

    Attributes:
        name: path of the source, or full name on the Hub with commit, configuration and split.
        description: format, kind of files, and for a data set on the Hub the split of the first
            file, for users.
        format: name of the format of the first file.
        columns: names of the columns in the first file.
        rows: number of rows in all files.
        is_estimate: the number of rows is estimated from the sizes of the files.
        pairs: the pairs among the first 200 rows.
    """

    name: str
    description: str
    format: str
    columns: tuple[str, ...]
    rows: int
    is_estimate: bool
    pairs: tuple[PreferencePair, ...]

    def lengths(self, count: Callable[[str], int]) -> list[int]:
        """Return the tokens of each pair's longer side, with those of a chat template, about.

        Args:
            count: returns the number of tokens of a text.
        """

        def length(messages: list[Message]) -> int:
            texts = sum(count(message["content"]) for message in messages)
            return texts + _TOKENS_PER_MESSAGE * len(messages)

        return [max(length(list(pair.chosen)), length(list(pair.rejected))) for pair in self.pairs]


def preview(
    path: Path,
    format: str = "auto",
    columns: Mapping[str, str] | None = None,
    on_progress: Callable[[int], None] = lambda rows: None,
) -> Preview:
    """Look at the first rows of a file, a folder, or a data set on the Hub.

    Of a data set on the Hub only the first file is downloaded.

    Args:
        path: file, folder, or name on the Hub.
        format, columns: see `Source`.
        on_progress: called with the number of rows counted so far.

    Raises:
        DpoError: the source cannot be read, or has no known format.
    """
    name, stated, share, title = str(path), None, 1.0, ""
    if is_on_hub(path):
        found, first = fetch_first(name)
        name, stated = found.name, found.rows
        share = found.sizes[0] / max(1, sum(found.sizes))
        title = f"; {found.title}"
        source = Source((first,), format, columns or {})
    else:
        source = Source((path,), format, columns or {})
        first = source.files[0][1]
    places = source.look(on_progress)
    seen: dict[str, None] = {}  # names in order, each once
    for _, row in islice(read_rows(first, kind_of(first)), _FIRST_ROWS):
        if not isinstance(row, MalformedError):
            seen |= dict.fromkeys(row)
    read = islice(read_pairs(source, None, places), _FIRST_ROWS)
    return Preview(
        name=name,
        description=places.description + title,
        format=next(part.format for part in places.parts if part.format),
        columns=tuple(seen),
        rows=stated or round(places.numbers / share),
        is_estimate=stated is None and share < 1,
        pairs=tuple(pair for pair in read if isinstance(pair, PreferencePair)),
    )
