"""Models on the Hugging Face Hub: "hf:ORG/NAME" or "hf:ORG/NAME@REVISION"."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from dpo_cli.errors import DpoError
from dpo_cli.hub.download import COMMIT, PREFIX, download
from dpo_cli.profile import folder

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


@cache
def fetch(weights: str) -> Path:
    """Return the local directory of a model; download it if it is not in the cache.

    A revision that is a commit needs no network once it is cached. A branch, or no revision, is
    looked up again where there is a network.

    Raises:
        DpoError: see `download`.
    """
    name, _, revision = weights.removeprefix(PREFIX).partition("@")
    if COMMIT.fullmatch(revision) and (path := cached(weights)):
        return path
    path = download(name, revision, _FILES, "model")
    if folder.is_model(path) and not folder.has_weights(path):
        path = download(name, revision, _OTHER_FILES, "model")
    return path


def fetch_config(weights: str) -> Path:
    """Return a local directory with the configuration of a model, but perhaps without its weights.

    Raises:
        DpoError: see `download`.
    """
    name, _, revision = weights.removeprefix(PREFIX).partition("@")
    return cached(weights) or download(name, revision, [folder.CONFIG], "model")


def cached(weights: str) -> Path | None:
    """Return the local directory of a model if it is completely in the cache, without a network."""
    name, _, revision = weights.removeprefix(PREFIX).partition("@")
    try:
        path = download(name, revision, [], "model", local_files_only=True)
    except DpoError:
        return None
    return path if _is_whole(path) else None


def at_commit(weights: str, path: Path) -> str:
    """Return the name pinned to the commit in `path`, so that a resume uses the same weights."""
    return f"{weights.partition('@')[0]}@{path.name}"


def _is_whole(path: Path) -> bool:
    try:
        return folder.is_model(path) and all(file.is_file() for file in folder.weight_files(path))
    except DpoError:
        return False
