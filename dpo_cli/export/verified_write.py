"""Writes weights and proves that they were written: first beside their place, under a name of
nobody's.
"""

from __future__ import annotations

import fcntl
import glob
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from dpo_cli.errors import DpoError
from dpo_cli.files import fsync_path, swap
from dpo_cli.models.convert import StateDict
from dpo_cli.models.loading import ModelWeights, load_model_weights
from dpo_cli.models.minimind import NOT_IN_WEIGHTS, MiniMind
from dpo_cli.models.saving import write_model
from dpo_cli.models.spec import Architecture
from dpo_cli.profile import folder
from dpo_cli.run.disk import explain_disk_errors


def check_place(path: Path, architecture: Architecture) -> None:
    """Refuse to write weights where they cannot be, or where other things than weights would go.

    Args:
        path: of the file or directory.
        architecture: of the weights, which decides which of the two it is.

    Raises:
        DpoError: saying what is there.
    """
    is_file = isinstance(architecture, MiniMind)
    if is_file and path.is_dir():
        raise DpoError(f"{path}: a directory", "name the file with --to")
    if not is_file and path.exists() and not path.is_dir():
        raise DpoError(f"{path}: a file", "name a directory with --to")
    if others := sorted(folder.other_files(path)):
        raise DpoError(
            f"{path} would be replaced whole, and holds {', '.join(others[:5])}",
            "name a new directory with --to",
        )
    if not path.parent.is_dir():
        raise DpoError(
            f"{path.parent}: no such directory", "create it, or write elsewhere with --to"
        )


@contextmanager
def verified_write(
    path: Path,
    rounded: StateDict,
    architecture: Architecture,
    dtype: str,
    tokenizer: Path | None = None,
) -> Iterator[tuple[Path, ModelWeights]]:
    """Write weights in their makers' form; for a block of further proof.

    Only then does the file or directory get its name; until then there is none, or the one that was
    there.

    Args:
        path: of the file or directory.
        rounded: in the Hugging Face layout, from `round_weights` to `dtype`.
        architecture: of the weights.
        dtype: a key of `DTYPES`.
        tokenizer: the folder that a directory gets its tokenizer from.

    Yields:
        Where it is for now, and what was read back from there.

    Raises:
        NoSpaceError: the disk is full.
        DpoError: it cannot be written, or does not hold what was written.
    """
    with explain_disk_errors(path.parent), rename_on_success(path) as temporary:
        write_model(temporary, rounded, architecture, dtype, tokenizer)
        # What the weights alone may not tell.
        stated = {key: getattr(architecture, key, None) for key in NOT_IN_WEIGHTS}
        read_back = load_model_weights(temporary, stated)
        _require_same(path, read_back.state, rounded)
        yield temporary, read_back


def _require_same(path: Path, read_back: StateDict, written: StateDict) -> None:
    """Every weight of the file is bit for bit the one that was to be written.

    Raises:
        DpoError: naming the first that is not.
    """
    for name, tensor in written.items():
        if not torch.equal(read_back[name], tensor):
            raise DpoError(
                f"{path}: {name} was read back otherwise than it was written",
                "disk or memory fail here: write to another place",
            )


@contextmanager
def rename_on_success(path: Path) -> Iterator[Path]:
    """A name for a file or a directory that becomes `path` if nothing goes wrong.

    What had that name is replaced in one moment.
    """
    with _own_directory(path) as directory:
        new = directory / path.name
        yield new
        if path.is_dir():
            swap(new, path)  # the old one goes with the directory
        else:
            os.replace(new, path)
        fsync_path(path.parent)


@contextmanager
def _own_directory(path: Path) -> Iterator[Path]:
    """A directory beside `path` for a block; those that killed exports to `path` left are removed.

    It is locked, and the kernel frees the lock however the process ends.
    """
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
        with _locked(leftover, fcntl.LOCK_EX | fcntl.LOCK_NB) as is_abandoned:
            if is_abandoned:
                shutil.rmtree(leftover, ignore_errors=True)
    while True:
        directory = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
        directory.mkdir()
        with _locked(directory, fcntl.LOCK_EX):
            if not directory.exists():  # removed by another export before it was locked
                continue
            try:
                yield directory
            finally:
                shutil.rmtree(directory, ignore_errors=True)
            return


@contextmanager
def _locked(directory: Path, operation: int) -> Iterator[bool]:
    """Lock a directory for a block, if it can be done; whether it was."""
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:  # gone meanwhile, or no directory
        yield False
        return
    try:
        is_locked = True
        try:
            fcntl.flock(descriptor, operation)
        except OSError:  # another has it, or the file system locks no directories
            is_locked = False
        yield is_locked
    finally:
        os.close(descriptor)
