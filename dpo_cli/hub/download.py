"""Download of files from the Hugging Face Hub into its own cache, with our errors.

huggingface_hub does the work. `HF_ENDPOINT` selects another Hub, `HF_HOME` another cache, and
`HF_HUB_OFFLINE=1` forbids the network.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from dpo_cli.errors import DpoError, first_line
from dpo_cli.formatting import format_size

PREFIX = "hf:"
_BAR = "downloading {bar} {n_fmt}B of {total_fmt}B  {rate_fmt}"
_TRUE = ("1", "ON", "YES", "TRUE")
"""Values by which huggingface_hub takes a variable as set."""
COMMIT = re.compile(r"[0-9a-f]{40}")

Kind = Literal["model", "dataset"]
"""Kind of a repository, as huggingface_hub names it."""

_TITLES: Mapping[Kind, str] = {"model": "model", "dataset": "data set"}
_FORMS: Mapping[Kind, str] = {
    "model": "Write hf:ORG/NAME or hf:ORG/NAME@REVISION.",
    "dataset": "Write hf:ORG/NAME, hf:ORG/NAME@REVISION or hf:ORG/NAME:CONFIG/SPLIT.",
}


def is_on_hub(name: object) -> bool:
    """Return True for the name of a model or data set on the Hub."""
    return str(name).startswith(PREFIX)


def download(
    repository: str,
    revision: str,
    patterns: Sequence[str],
    kind: Kind,
    *,
    local_files_only: bool = False,
    shows_progress: bool = True,
) -> Path:
    """Download the files that match a pattern, and return their folder, named after the commit.

    Files that are already in the cache are not downloaded again. A revision that is no commit is
    looked up again where there is a network, and else as it was last seen.

    Args:
        repository: ORG/NAME.
        revision: branch, tag or commit; "" for the main branch.
        patterns: patterns of paths; none for all files.
        kind: kind of the repository.
        local_files_only: do not use the network.
        shows_progress: draw a progress bar if standard error is a terminal.

    Raises:
        DpoError: the repository or revision does not exist, is not readable for this user, or is
            neither cached nor downloadable.
    """
    from huggingface_hub import snapshot_download

    is_shown = shows_progress and sys.stderr.isatty()
    with _explained(repository, revision, kind), _progress_bar(is_shown) as bar_class:
        path = snapshot_download(
            repository,
            repo_type=kind,
            revision=revision or None,
            allow_patterns=list(patterns) or None,
            local_files_only=local_files_only,
            tqdm_class=bar_class,
        )
    return Path(path)


def list_files(repository: str, folder: Path, kind: Kind) -> dict[str, int]:
    """Return the sizes of all files of a repository by their paths in it.

    Without network, and if huggingface_hub has not kept the list, these are the files in the cache.

    Args:
        repository: ORG/NAME.
        folder: result of `download`.
        kind: kind of the repository.
    """
    import huggingface_hub

    commit = folder.name
    # Releases before 2.0 keep no list.
    if cached_tree := getattr(huggingface_hub, "get_cached_repo_tree", None):
        with contextlib.suppress(Exception):
            files = cached_tree(repository, repo_type=kind, revision=commit)
            return {file.path: file.size for file in files}
    try:
        with _explained(repository, commit, kind):
            entries = huggingface_hub.HfApi().list_repo_tree(
                repository, repo_type=kind, revision=commit, recursive=True
            )
            return {e.path: e.size for e in entries if isinstance(e, huggingface_hub.RepoFile)}
    except DpoError:
        cached = {path for path in folder.rglob("*") if path.is_file()}
        if not cached:
            raise
        return {path.relative_to(folder).as_posix(): path.stat().st_size for path in cached}


def require_space(folder: Path, size_bytes: int, what: str) -> None:
    """Check that the disk of the cache has room for a download.

    Raises:
        DpoError: it has less free space.
    """
    place = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(place).free
    if size_bytes > free:
        raise DpoError(
            f"{what} has {format_size(size_bytes)}, and {format_size(free)} are free below {place}",
            "Free some space, or set HF_HOME to a directory on another disk.",
        )


@contextlib.contextmanager
def _progress_bar(is_shown: bool) -> Iterator[Any]:
    """Yield a class of progress bars that draws the bytes on one line, and remove the line.

    huggingface_hub draws two or three bars, also where standard error is a file, and closes none.
    """
    from huggingface_hub.utils.tqdm import tqdm

    bars: list[Any] = []

    class Bar(tqdm):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            counts_bytes = options.get("unit") == "B"
            is_second = str(options.get("desc")).startswith("Reconstruct")
            options["disable"] = not is_shown or not counts_bytes or is_second
            if counts_bytes:
                options |= {"leave": False, "bar_format": _BAR}
            super().__init__(*arguments, **options)  # type: ignore[no-untyped-call]
            bars.append(self)

        def display(self, *arguments: Any, **options: Any) -> Any:
            # The size is known once a file is requested: never, if the cache has all of them.
            return super().display(*arguments, **options) if self.total else None

    try:
        yield Bar
    finally:
        for bar in bars:
            bar.close()


@contextlib.contextmanager
def _explained(name: str, revision: str, kind: Kind) -> Iterator[None]:
    """Convert the errors of huggingface_hub to ours."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    title = _TITLES[kind]
    command = "hf download" + " --repo-type dataset" * (kind == "dataset")
    try:
        yield
    except HFValidationError as error:
        raise DpoError(f"{name!r} is not a {title} name on the Hub", _FORMS[kind]) from error
    except GatedRepoError as error:
        raise DpoError(
            f"{name} is a gated {title}",
            "Request access on its page, then log in: hf auth login",
        ) from error
    except RevisionNotFoundError as error:
        raise DpoError(
            f"{name} has no revision {revision}", f"Use a branch, tag or commit of this {title}."
        ) from error
    except RepositoryNotFoundError as error:
        raise DpoError(
            f"{name} does not exist on the Hub, or is private",
            f"Check the name. For a private {title}, log in: hf auth login",
        ) from error
    except LocalEntryNotFoundError as error:
        is_offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in _TRUE
        raise DpoError(
            f"{name} is not, or only partly, in this machine's cache, and the Hub cannot be"
            f" reached{' (HF_HUB_OFFLINE is set)' if is_offline else ''}",
            f"{'Unset HF_HUB_OFFLINE, or download' if is_offline else 'Download'} it on a machine"
            f" with a network ({command}), copy the directory here, and"
            " write its path instead. HF_ENDPOINT selects another Hub.",
        ) from error
    except Exception as error:  # connections fail with errors that the library does not document
        raise DpoError(
            f"{name} cannot be downloaded from the Hub ({first_line(error)})",
            f"Try again, or download it elsewhere ({command}) and write the path of the copy.",
        ) from error
