"""Upload of a model to the Hugging Face Hub, with our errors.

huggingface_hub does the work. The files of a push become one commit, so that a repository never has
the weights of one push and the configuration of another. A file that was uploaded completely before
an interruption is not sent again, because the Hub keeps it by its hash.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpo_cli.errors import DpoError, UsageError, first_line

_LOGIN = "Log in: hf auth login. In a script, set HF_TOKEN to a token that may write."
_AGAIN = "Run the same command again: files that were sent completely are not sent again."
_CARD = "README.md"
_OWN = ".gitattributes"
"""File that the Hub adds to every new repository."""


@dataclass(frozen=True)
class Place:
    """Repository of a push.

    Attributes:
        repository: ORG/NAME.
        exists: the repository is on the Hub.
        files: paths of the files in it.
    """

    repository: str
    exists: bool
    files: tuple[str, ...]


@dataclass(frozen=True)
class Uploaded:
    """Commit of a push.

    Attributes:
        url: page of the model.
        commit: name of the commit.
    """

    url: str
    commit: str


def find_place(repository: str, *, is_public: bool, mark: str) -> Place:
    """Check that this user may push to a repository; creates nothing.

    Args:
        repository: ORG/NAME.
        is_public: everybody is to see the model.
        mark: text in the model card of a repository that may be replaced.

    Raises:
        UsageError: the name is not ORG/NAME.
        DpoError: the user is not logged in, the Hub cannot be reached, or the repository has
            another model or another visibility.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise _wrong_name(repository) from error
    if repository.count("/") != 1:
        raise _wrong_name(repository)
    if constants.HF_HUB_OFFLINE:
        raise DpoError("HF_HUB_OFFLINE=1 forbids the network", "Unset it to push a model.")
    api = HfApi()
    with _explained(repository):
        api.whoami()
        try:
            info = api.model_info(repository)
        except RepositoryNotFoundError:
            return Place(repository, exists=False, files=())
    if is_public and info.private:
        raise DpoError(
            f"{repository} is private, and only a new repository can be made public",
            "Push to it as private, and change the visibility in the settings of its page.",
        )
    if not is_public and not info.private:
        raise DpoError(
            f"{repository} exists and is public: everybody would see the model",
            "Add --public (public=True in Python), or choose another name.",
        )
    files = tuple(each.rfilename for each in info.siblings or ())
    if set(files) - {_OWN} and not _has_mark(api, repository, files, mark):
        raise DpoError(
            f"{repository} exists, and dpo push did not write it",
            "Choose another name, or delete the repository on its page.",
        )
    return Place(repository, exists=True, files=files)


def upload(
    place: Place,
    files: Mapping[str, Path | bytes],
    obsolete: tuple[str, ...],
    *,
    is_public: bool,
    message: str,
) -> Uploaded:
    """Upload files as one commit; create the repository if it does not exist.

    Draws the progress bars of huggingface_hub if standard error is a terminal.

    Args:
        place: result of `find_place`.
        files: path of a local file, or a content, by the path in the repository.
        obsolete: paths in the repository that the commit removes.
        is_public: make a new repository public.
        message: message of the commit.

    Raises:
        DpoError: this user may not write there, or the upload was interrupted.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    api, name = HfApi(), place.repository
    with _explained(name), _quiet_unless(sys.stderr.isatty()):
        if not place.exists:
            api.create_repo(name, repo_type="model", private=not is_public)
        operations: list[Any] = [CommitOperationAdd(path, at) for path, at in files.items()]
        operations += [CommitOperationDelete(path) for path in obsolete]
        commit = api.create_commit(name, operations, commit_message=message)
    return Uploaded(f"{api.endpoint}/{name}", str(commit.oid))


def _wrong_name(repository: str) -> UsageError:
    return UsageError(
        f"{repository!r} is not a model name on the Hub",
        "Write ORG/NAME, where ORG is your user name or an organization.",
    )


def _has_mark(api: Any, repository: str, files: tuple[str, ...], mark: str) -> bool:
    if _CARD not in files:
        return False
    with _explained(repository):
        card = Path(api.hf_hub_download(repository, _CARD))
    return mark in card.read_text(encoding="utf-8", errors="replace")


@contextlib.contextmanager
def _quiet_unless(is_shown: bool) -> Iterator[None]:
    """Disable the progress bars of huggingface_hub for a block, unless they are to be shown."""
    from huggingface_hub.utils.tqdm import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    if is_shown or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


@contextlib.contextmanager
def _explained(repository: str) -> Iterator[None]:
    """Convert the errors of huggingface_hub to ours."""
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    try:
        yield
    except LocalTokenNotFoundError as error:
        raise DpoError("you are not logged in to the Hub", _LOGIN) from error
    except HfHubHTTPError as error:
        raise _refusal(repository, error, error.response.status_code) from error
    except DpoError:
        raise
    except Exception as error:  # connections fail with errors that the library does not document
        cause = error.__cause__ or error  # the library wraps errors of a file's upload
        if isinstance(cause, HfHubHTTPError):
            raise _refusal(repository, cause, cause.response.status_code) from error
        # httpx has its own errors of the network, which are no OSError.
        kinds = {each.__name__ for each in (*type(error).__mro__, *type(cause).__mro__)}
        is_network = not kinds.isdisjoint(("TransportError", "OSError"))
        problem = "the Hub cannot be reached " if is_network else ""
        raise DpoError(
            f"{repository} was not pushed: {problem}({first_line(cause)})",
            f"{_AGAIN} HF_ENDPOINT selects another Hub.",
        ) from error


def _refusal(repository: str, error: Exception, status: int) -> DpoError:
    """Return the error for a request that the Hub refused with an HTTP status."""
    owner = repository.partition("/")[0]
    if status == 401:
        return DpoError("the Hub does not accept your login", _LOGIN)
    if status in (402, 403):
        return DpoError(
            f"you may not write to {repository}",
            f"Use a token that may write, of a user who may write for {owner}: hf auth login",
        )
    if status == 409:
        return DpoError(
            f"{repository} was changed or created by someone else meanwhile",
            "Run the same command again, or choose another name.",
        )
    return DpoError(
        f"{repository} was not pushed: the Hub answered {status} ({first_line(error)})",
        _AGAIN,
    )
