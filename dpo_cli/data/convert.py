"""Conversion of any source of pairs to one JSONL file."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from dpo_cli.data.pairs import SkippedRow, read_pairs
from dpo_cli.data.places import Places
from dpo_cli.data.row_writers import Layout, writer_of
from dpo_cli.data.rows import MalformedError
from dpo_cli.data.sources import Source
from dpo_cli.errors import DpoError, UsageError
from dpo_cli.files import expanded, leftovers, pair_files, would_replace, write_atomically
from dpo_cli.hub.download import is_on_hub
from dpo_cli.machine import lock_file

OnProgress = Callable[[str, int, int, str], None]
"""Called with phase, done, total and unit."""

_SUFFIX, _SKIPPED = ".jsonl", ".skipped"
_WHOLE = "minimind"
_PROGRESS_ROWS = 1000
_MOST_DETAILS = 5


@dataclass(frozen=True)
class Converted:
    """Result of a conversion.

    Attributes:
        path: the written file.
        pairs: number of pairs in it.
        description: formats and kinds of the files of the source, for users.
        skipped: number of skipped rows by problem.
        skipped_path: file with a line for each skipped row; missing if there is none.
        unread: number of rows in which a column has a value that the pairs do not contain.
        settings: profile keys that give the pairs of the file the tokens and the loss of those of
            the source, where the defaults of the two formats differ.
    """

    path: Path
    pairs: int
    description: str
    skipped: Mapping[str, int]
    skipped_path: Path
    unread: Mapping[str, int]
    settings: Mapping[str, str]


def destination(path: Path, source: Source, *, force: bool) -> Path:
    """Return the absolute path of a file to write.

    Raises:
        UsageError: the name is no JSONL file's, the folder is missing, the file exists, or it
            would be a part of the source.
    """
    path = expanded(path).absolute()
    if path.suffix != _SUFFIX:
        raise UsageError(f"--to {path}: the file is JSONL", f"Write a name that ends in {_SUFFIX}.")
    if not path.parent.is_dir():
        raise UsageError(f"--to: {path.parent} does not exist", "Create the directory first.")
    local = [each for each in source.paths if not is_on_hub(each)]
    files = [file for each in local for file in pair_files(each)]
    written = (path, _skipped_path(path))
    is_part = any(would_replace(new, file) for new in written for file in files)
    # A new file in a folder of the source would be read with it the next time.
    if is_part or path.parent.resolve() in [each.resolve() for each in local]:
        raise UsageError(
            f"--to {path}: the file would be a part of the data", "Write it to another directory."
        )
    if path.exists() and not (force and path.is_file()):
        raise UsageError(
            f"{path} exists", "Replace it with --force, or choose another path with --to."
        )
    return path


def convert_source(source: Source, to: Path, layout: Layout, on_progress: OnProgress) -> Converted:
    """Write the pairs of a source to a JSONL file, and its skipped rows to a file beside it.

    Both files appear when they are complete. Memory does not grow with the source.

    Args:
        source: files of pairs.
        to: result of `destination`.
        layout: form of the rows.
        on_progress: see `OnProgress`.

    Raises:
        DpoError: a file cannot be read or written, or no row is a pair.
    """
    places = source.look(lambda rows: on_progress("counting", rows, 0, "rows"))
    is_whole = all(part.format in ("", _WHOLE) for part in places.parts)
    skipped_path = _skipped_path(to)
    _remove_leftovers(to, skipped_path)
    job = _Job(source, places, layout, is_whole, on_progress)

    def write_both(temporary: Path) -> None:
        write_atomically(skipped_path, lambda skipped: job.write(temporary, skipped))
        if not job.skipped:
            skipped_path.unlink()

    write_atomically(to, write_both)
    return Converted(
        path=to,
        pairs=job.pairs,
        description=source.description(places),
        skipped=job.skipped,
        skipped_path=skipped_path,
        unread=job.unread,
        settings=_settings(is_whole=is_whole, becomes_whole=job.writer.is_whole),
    )


def _skipped_path(path: Path) -> Path:
    return path.with_name(f"{path.name}{_SKIPPED}")


class _Job:
    """State of one conversion."""

    def __init__(
        self,
        source: Source,
        places: Places,
        layout: Layout,
        is_whole: bool,
        on_progress: OnProgress,
    ) -> None:
        self._source, self._places, self._on_progress = source, places, on_progress
        self.writer = writer_of(layout, is_whole=is_whole)
        self.pairs = 0
        self.skipped: Counter[str] = Counter()
        self.unread: Counter[str] = Counter()
        self._reasons: list[str] = []

    def write(self, path: Path, skipped_path: Path) -> None:
        """Write both files.

        Raises:
            DpoError: no row is a pair.
        """
        with _opened(path) as file, _opened(skipped_path) as skipped:
            for number, pair in enumerate(read_pairs(self._source, None, self._places)):
                if number % _PROGRESS_ROWS == 0:
                    self._on_progress("converting", number, self._places.numbers, "rows")
                if isinstance(pair, SkippedRow):
                    self._skip(pair, skipped)
                    continue
                try:
                    line = self.writer.line(pair)
                except MalformedError as error:
                    self._skip(SkippedRow(pair.line, "malformed", str(error)), skipped)
                    continue
                file.write(f"{line}\n")
                self.pairs += 1
                self.unread.update(pair.unread.keys())
        if not self.pairs:
            raise DpoError(
                f"{self._source}: no row is a pair",
                "Set data.format and data.columns, or correct the rows.",
                self._reasons,
            )

    def _skip(self, row: SkippedRow, file: TextIO) -> None:
        file.write(f"{row.to_json(self._places)}\n")
        self.skipped[row.problem] += 1
        if len(self._reasons) < _MOST_DETAILS:
            self._reasons.append(f"{self._places.name(row.line)}: {row.reason}")


def _settings(*, is_whole: bool, becomes_whole: bool) -> dict[str, str]:
    if is_whole == becomes_whole:
        return {}
    if becomes_whole:
        return {"data.scored_turns": "last", "data.truncation": "prompt_start"}
    return {"data.scored_turns": "all", "data.truncation": "end"}


def _opened(path: Path) -> TextIO:
    """Open a temporary file for writing, and lock it, so that no other conversion removes it."""
    file = path.open("w", encoding="utf-8", newline="\n")
    with contextlib.suppress(OSError):  # some file systems have no locks
        lock_file(file.fileno())
    return file


def _remove_leftovers(*paths: Path) -> None:
    """Remove the temporary files of conversions to these paths that were killed."""
    names = {path.name for path in paths}
    for path, name in leftovers(paths[0].parent):
        if name not in names or path.is_symlink() or not path.is_file():
            continue
        with contextlib.suppress(OSError), path.open("rb") as file:
            lock_file(file.fileno())
            path.unlink()
