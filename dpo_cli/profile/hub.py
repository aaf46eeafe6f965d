"""Models by their names on the Hugging Face Hub: "hf:ORG/NAME" or "hf:ORG/NAME@REVISION".

huggingface_hub fetches them once, into its own cache, from where `HF_ENDPOINT` says.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from dpo_cli.errors import DpoError
from dpo_cli.profile import folder

PREFIX = "hf:"
_COMMIT = re.compile(r"[0-9a-f]{40}")
_FILES = [
    *(
        folder.CONFIG,
        folder.GENERATION_CONFIG,
        "model*.safetensors",
        "model.safetensors.index.json",
    ),
    *(*folder.TOKENIZER, *folder.TOKENIZER_OPTIONAL),
]
_OTHER_FILES = ["pytorch_model*.bin", "pytorch_model.bin.index.json"]
"""Weights of those that have no others."""


def is_on_hub(weights: str) -> bool:
    """Whether weights are named as they are on the Hub."""
    return weights.startswith(PREFIX)


@cache
def fetch(weights: str) -> Path:
    """The directory of a model, fetched if it is not here yet.

    What is stated with its commit needs no network once it is here; a branch, or none, is asked for
    anew where there is a network.

    Raises:
        DpoError: there is no such model or revision, one may not read it, or it is not here and
            cannot be fetched.
    """
    name, _, revision = weights.removeprefix(PREFIX).partition("@")
    if _COMMIT.fullmatch(revision):
        try:
            path = _download(name, revision, [], local_files_only=True)
        except DpoError:
            pass
        else:
            if _is_whole(path):
                return path
    path = _download(name, revision, _FILES)
    if folder.is_model(path) and not folder.has_weights(path):
        path = _download(name, revision, _OTHER_FILES)
    return path


def at_commit(weights: str, path: Path) -> str:
    """The name with the commit that was fetched to `path`, so that it means the same tomorrow."""
    return f"{weights.partition('@')[0]}@{path.name}"


def _is_whole(path: Path) -> bool:
    try:
        return folder.is_model(path) and all(file.is_file() for file in folder.weight_files(path))
    except DpoError:
        return False


def _download(
    name: str, revision: str, patterns: list[str], *, local_files_only: bool = False
) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        found = snapshot_download(
            name,
            revision=revision or None,
            allow_patterns=patterns or None,
            local_files_only=local_files_only,
        )
    except HFValidationError as error:
        raise DpoError(
            f"{name!r} is no name of a model on the Hub",
            "write hf:ORG/NAME, or hf:ORG/NAME@REVISION",
        ) from error
    except GatedRepoError as error:
        raise DpoError(
            f"{name}: its owners let only those read it whom they know",
            "ask them on its page, then log in: hf auth login",
        ) from error
    except RevisionNotFoundError as error:
        raise DpoError(
            f"{name} has no revision {revision}", "name a branch, tag or commit"
        ) from error
    except RepositoryNotFoundError as error:
        raise DpoError(
            f"{name}: there is no such model on the Hub, or it is private",
            "look at the name; for a private one log in: hf auth login",
        ) from error
    except LocalEntryNotFoundError as error:
        raise DpoError(
            f"{name} is not in this machine's cache, and the Hub cannot be reached",
            "fetch it where there is a network (hf download), copy the directory here, and name"
            " that; HF_ENDPOINT names another Hub",
        ) from error
    except Exception as error:  # a connection may break in more ways than the library names
        reason = (str(error) or type(error).__name__).strip().splitlines()[0][:200]
        raise DpoError(
            f"{name} cannot be fetched from the Hub ({reason})",
            "try again, or fetch it elsewhere (hf download) and name the directory",
        ) from error
    return Path(found)
