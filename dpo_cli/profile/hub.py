"""Models on the Hugging Face Hub: "hf:ORG/NAME" or "hf:ORG/NAME@REVISION".

huggingface_hub downloads them once, into its own cache. `HF_ENDPOINT` selects another Hub.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from dpo_cli.errors import DpoError, first_line
from dpo_cli.profile import folder

PREFIX = "hf:"
_COMMIT = re.compile(r"[0-9a-f]{40}")
# No *.py: the code of a model is never downloaded.
_FILES = [
    *(
        folder.CONFIG,
        folder.GENERATION_CONFIG,
        "model*.safetensors",
        "model.safetensors.index.json",
    ),
    *(*folder.TOKENIZER, *folder.TOKENIZER_OPTIONAL, f"{folder.TEMPLATES}/*.jinja"),
]
_OTHER_FILES = ["pytorch_model*.bin", "pytorch_model.bin.index.json"]
"""Pickled weights, downloaded only for models without safetensors."""


def is_on_hub(weights: str) -> bool:
    """Return True if the weights are a model on the Hub."""
    return weights.startswith(PREFIX)


@cache
def fetch(weights: str) -> Path:
    """Return the local directory of a model; download it if it is not in the cache.

    A revision that is a commit needs no network once it is cached. A branch, or no revision, is
    looked up again where there is a network.

    Raises:
        DpoError: the model or revision does not exist, is not readable for this user, or is
            neither cached nor downloadable.
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
    """Return the name pinned to the commit in `path`, so that a resume uses the same weights."""
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
        path = snapshot_download(
            name,
            revision=revision or None,
            allow_patterns=patterns or None,
            local_files_only=local_files_only,
        )
    except HFValidationError as error:
        raise DpoError(
            f"{name!r} is not a model name on the Hub",
            "Write hf:ORG/NAME or hf:ORG/NAME@REVISION.",
        ) from error
    except GatedRepoError as error:
        raise DpoError(
            f"{name} is a gated model",
            "Request access on its page, then log in: hf auth login",
        ) from error
    except RevisionNotFoundError as error:
        raise DpoError(
            f"{name} has no revision {revision}", "Use a branch, tag or commit of this model."
        ) from error
    except RepositoryNotFoundError as error:
        raise DpoError(
            f"{name} does not exist on the Hub, or is private",
            "Check the name. For a private model, log in: hf auth login",
        ) from error
    except LocalEntryNotFoundError as error:
        raise DpoError(
            f"{name} is not in this machine's cache, and the Hub cannot be reached",
            "Download it on a machine with a network (hf download), copy the directory here, and"
            " set model.weights to it. HF_ENDPOINT selects another Hub.",
        ) from error
    except Exception as error:  # connections fail with errors that the library does not document
        reason = first_line(error)
        raise DpoError(
            f"{name} cannot be downloaded from the Hub ({reason})",
            "Try again, or download it elsewhere (hf download) and set model.weights to the copy.",
        ) from error
    return Path(path)
