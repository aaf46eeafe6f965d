"""Verified writing of weights: to a temporary path, read back, then renamed."""

from __future__ import annotations

import glob
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from dpo_cli.errors import DpoError
from dpo_cli.files import fsync_path, is_special, swap
from dpo_cli.machine import NO_FOLLOW, lock_file
from dpo_cli.models.convert import StateDict
from dpo_cli.models.loading import ModelWeights, load_model_weights
from dpo_cli.models.minimind import NOT_IN_WEIGHTS, MiniMind
from dpo_cli.models.saving import write_model
from dpo_cli.models.spec import Architecture
from dpo_cli.profile import folder
from dpo_cli.run.disk import explain_disk_errors


def check_destination(path: Path, architecture: Architecture) -> None:
    """Refuse a destination that cannot be written, or that would replace files of the user.

    Args:
        path: destination.
        architecture: decides between a file (MiniMind) and a directory.

    Raises:
        DpoError: the destination is refused.
    """
    if not isinstance(architecture, MiniMind):
        check_directory(path, folder.other_files(path))
        return
    _check_place(path)
    if path.is_dir():
        raise DpoError(f"{path} is a directory", "Choose the path of a file.")


def check_directory(path: Path, others: Iterable[str]) -> None:
    """Refuse a directory that cannot be written, or that has files of the user.

    Args:
        path: destination.
        others: names in it that no export writes.

    Raises:
        DpoError: the destination is refused.
    """
    _check_place(path)
    if path.exists() and not path.is_dir():
        raise DpoError(f"{path} is a file", "Choose the path of a directory.")
    if found := sorted(others):
        raise DpoError(
            f"{path} would be replaced completely, and contains {', '.join(found[:5])}",
            "Choose a new directory.",
        )


def _check_place(path: Path) -> None:
    """Refuse a device, a pipe, and a path in a directory that does not exist."""
    if is_special(path):
        raise DpoError(f"{path}: not a regular file", "Choose another path.")
    if not path.parent.is_dir():
        raise DpoError(f"{path.parent}: no such directory", "Create it, or choose another path.")


@contextmanager
def verified_write(
    path: Path,
    rounded: StateDict,
    architecture: Architecture,
    dtype: str,
    tokenizer: Path | None = None,
) -> Iterator[tuple[Path, ModelWeights]]:
    """Write weights to a temporary path, read them back, and rename after the block.

    If the block or the verification fails, `path` remains as it was.

    Args:
        path: final path of the file or directory.
        rounded: weights in the Hugging Face layout, rounded to `dtype` by `round_weights`.
        architecture: decides the format.
        dtype: a key of `DTYPES`.
        tokenizer: folder of the tokenizer that a directory gets.

    Yields:
        The temporary path, and the weights as loaded back, for further checks.

    Raises:
        NoSpaceError: the disk is full.
        DpoError: the weights cannot be written, or differ when read back.
    """
    with explain_disk_errors(path.parent), rename_on_success(path) as temporary:
        write_model(temporary, rounded, architecture, dtype, tokenizer)
        # Settings that a MiniMind file does not contain, such as rope_theta.
        settings = {key: getattr(architecture, key, None) for key in NOT_IN_WEIGHTS}
        read_back = load_model_weights(temporary, settings)
        _require_same(path, read_back.state, rounded)
        yield temporary, read_back


def _require_same(path: Path, read_back: StateDict, written: StateDict) -> None:
    """Require that every weight is bit for bit the one that was written."""
    for name, tensor in written.items():
        # Weights of several dtypes are read as float32, which represents each of them exactly.
        if not torch.equal(read_back[name].to(tensor.dtype), tensor):
            raise DpoError(
                f"{path}: {name} read back differs from what was written",
                "Disk or memory may be faulty. Choose another path.",
            )


@contextmanager
def rename_on_success(path: Path) -> Iterator[Path]:
    """Yield a temporary path for a file or directory, and rename it to `path` on success.

    An existing file or directory is replaced atomically.
    """
    with _temporary_directory(path) as directory:
        new = directory / path.name
        yield new
        if path.is_dir():
            swap(new, path)  # the old directory is deleted with the temporary one
        else:
            os.replace(new, path)
        fsync_path(path.parent)  # else a power failure could undo the rename


@contextmanager
def _temporary_directory(path: Path) -> Iterator[Path]:
    """Create a directory next to `path` for the block; delete those of killed exports first.

    Each is locked while its export runs. The kernel releases the lock when the process ends, so a
    directory that can be locked is abandoned.
    """
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
        with _locked(leftover) as is_abandoned:
            if is_abandoned:
                shutil.rmtree(leftover, ignore_errors=True)
    while True:
        directory = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
        directory.mkdir()
        with _locked(directory, wait=True):
            if not directory.exists():  # removed by another export before it was locked
                continue
            try:
                yield directory
            finally:
                shutil.rmtree(directory, ignore_errors=True)
            return


@contextmanager
def _locked(directory: Path, *, wait: bool = False) -> Iterator[bool]:
    """Try to lock a directory for the block; yield True on success.

    On Windows none can be opened, so directories of killed exports stay.
    """
    try:
        descriptor = os.open(directory, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | NO_FOLLOW)
    except OSError:  # deleted by another export, or not a directory
        yield False
        return
    try:
        is_locked = True
        try:
            lock_file(descriptor, wait=wait)
        except OSError:  # locked by another export, or not supported by the file system
            is_locked = False
        yield is_locked
    finally:
        os.close(descriptor)
