"""Data sets on the Hub: "hf:ORG/NAME", also with "@REVISION" and with ":CONFIG/SPLIT"."""

from __future__ import annotations

import contextlib
import glob
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

from dpo_cli.errors import DpoError
from dpo_cli.hub.download import COMMIT, PREFIX, download, list_files, require_space
from dpo_cli.hub.splits import missing_shards, select_files, stated_rows

_NAME = re.compile(
    rf"{PREFIX}(?P<repository>[^@:]+)(?:@(?P<revision>[^:]+))?"
    r"(?::(?P<config>[^/:]+)(?:/(?P<split>[^/:]+))?)?"
)
_CARD = "README.md"
_CARD_FILES = [_CARD, ".gitattributes"]
"""README.md may be missing; with a second file, huggingface_hub does not warn of that."""
_MOST_CARD_BYTES = 4 << 20
_MOST_FILES = 5000


@dataclass(frozen=True)
class HubData:
    """Files of one split of a data set on the Hub.

    Attributes:
        name: full name with commit, configuration and split, which always means the same files.
        repository: ORG/NAME.
        folder: folder of the data set in the cache.
        files: paths in `folder`, in the order in which they are read.
        sizes: bytes of each file.
        rows: number of rows as README.md states it, if it does.
        title: configuration, split and commit, for users.
        held_out: name of the split for evaluation beside this one, if there is one.
    """

    name: str
    repository: str
    folder: Path
    files: tuple[str, ...]
    sizes: tuple[int, ...]
    rows: int | None
    title: str
    held_out: str | None = field(default=None, compare=False)

    @property
    def paths(self) -> list[Path]:
        """Absolute paths of the files."""
        return [self.folder / file for file in self.files]


@cache
def fetch_data(name: str) -> HubData:
    """Return the files of a data set; download those that are not in the cache.

    A revision that is a commit needs no network once its files are cached. A branch, or no
    revision, is looked up again where there is a network. An interrupted download continues with
    the files that are missing.

    Raises:
        DpoError: the name is malformed, there is no such data set, revision, configuration or
            split, or it is neither cached nor downloadable.
    """
    found = find_data(name)
    _download(found, found.files)
    return found


@cache
def find_data(name: str) -> HubData:
    """Return the files of a data set without downloading them, except for README.md.

    Raises:
        DpoError: see `fetch_data`.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise DpoError(
            f"{name!r} is not a data set name on the Hub",
            "Write hf:ORG/NAME, hf:ORG/NAME@REVISION or hf:ORG/NAME:CONFIG/SPLIT.",
        )
    repository, revision = match["repository"], match["revision"] or ""
    folder = _card_folder(repository, revision)
    metadata = _metadata(folder / _CARD)
    sizes = list_files(repository, folder, "dataset")
    shown = f"{PREFIX}{repository}" + (f"@{revision}" if revision else "")
    selection = select_files(shown, sizes, metadata, match["config"] or "", match["split"] or "")
    full = f"{PREFIX}{repository}@{folder.name}:{selection.config}/{selection.split}"
    if len(selection.files) > _MOST_FILES:
        raise DpoError(
            f"{full} has {len(selection.files):,} files, more than {_MOST_FILES:,}",
            "Download it, join its files, and write the path of the copy.",
        )
    found = HubData(
        full,
        repository,
        folder,
        selection.files,
        tuple(sizes[path] for path in selection.files),
        stated_rows(metadata, selection),
        f"split {selection.split} of {selection.config}, commit {folder.name[:8]}",
        f"{shown}:{selection.config}/{selection.held_out}" if selection.held_out else None,
    )
    if missing := missing_shards(found.files):
        raise DpoError(
            f"{full}: {missing} of its files are missing, as their names show",
            "Download it again where there is a network, or tell its owner.",
        )
    return found


def fetch_first(name: str) -> tuple[HubData, Path]:
    """Return a data set and its first file, the only one that is downloaded."""
    found = find_data(name)
    _download(found, found.files[:1])
    return found, found.paths[0]


def _card_folder(repository: str, revision: str) -> Path:
    fetch = partial(download, repository, revision, _CARD_FILES, "dataset", shows_progress=False)
    if COMMIT.fullmatch(revision):
        with contextlib.suppress(DpoError):
            return fetch(local_files_only=True)
    return fetch()


def _download(found: HubData, files: Sequence[str]) -> None:
    """Download the files that are not in the cache.

    Raises:
        DpoError: a file cannot be downloaded, or the disk has no room for all of them.
    """
    size_of = dict(zip(found.files, found.sizes, strict=True))
    missing = [file for file in files if not (found.folder / file).is_file()]
    if not missing:
        return
    require_space(found.folder, sum(size_of[file] for file in missing), found.name)
    commit, patterns = found.folder.name, list(map(glob.escape, missing))
    download(found.repository, commit, patterns, "dataset")
    if absent := [file for file in missing if not (found.folder / file).is_file()]:
        raise DpoError(
            f"{found.name}: {absent[0]} is not in this machine's cache, and was not downloaded",
            "Try again where there is a network.",
        )


def _metadata(card: Path) -> Mapping[str, Any]:
    """Return the metadata of README.md; empty if it has none that can be read."""
    from huggingface_hub import metadata_load

    try:
        if card.stat().st_size > _MOST_CARD_BYTES:
            return {}
        return metadata_load(card) or {}
    except Exception:  # no such file, or no YAML; the Hub takes the names of the files then, too
        return {}
