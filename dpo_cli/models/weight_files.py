"""Reading of weights files (`.pth`, `.bin`, `.safetensors`) without executing anything in them."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from dpo_cli.errors import DpoError, first_line
from dpo_cli.models.convert import StateDict
from dpo_cli.models.limits import check_archive, check_tensors
from dpo_cli.signatures import read_head, recognize

_WEIGHT_FILES = ("torch", "pickle", "safetensors")
"""Kinds of files with weights, see `dpo_cli.signatures`."""


def read_state_dict(path: Path) -> StateDict:
    """Read the tensors of a `.pth` or `.safetensors` file by name, without executing anything.

    Raises:
        DpoError: the file is missing, empty, truncated, of another format, or holds anything but
            tensors.
    """
    if not path.is_file():
        problem = "a directory" if path.is_dir() else "no such file"
        raise DpoError(f"{path}: {problem}", "Set model.weights to a weights file.")
    if path.stat().st_size == 0:
        raise DpoError(f"{path}: the file is empty", "Copy or write the weights again.")
    try:
        found = recognize(read_head(path))
    except OSError as error:
        raise DpoError(f"{path}: {error.strerror}", "Make the file readable.") from error
    if found is not None and found.name not in _WEIGHT_FILES:
        raise found.error(path)
    try:
        # The content decides: weights are often renamed to the other suffix.
        kind = found.name if found else path.suffix.removeprefix(".")
        is_mapped = kind == "safetensors"
        check_archive(path, is_safetensors=is_mapped)
        if is_mapped:
            content: Any = load_file(path)
        else:
            with path.open("rb") as file:  # given a path, torch decides by the suffix
                content = torch.load(file, map_location="cpu", weights_only=True)
    except DpoError:
        raise
    except pickle.UnpicklingError as error:
        raise DpoError(
            f"{path}: not plain weights: the file asks to run code, or is no PyTorch file"
            " (nothing in it was run)",
            "Save the weights alone: torch.save(model.state_dict(), path)",
        ) from error
    except Exception as error:  # on damaged bytes the readers raise almost any exception
        raise DpoError(
            f"{path}: cut off, corrupted, or no weights file ({first_line(error)})",
            "Copy or write the weights again.",
        ) from error
    state = _require_tensors(content, path)
    # Copies: tensors that are mapped from the file would change when it is overwritten.
    return {name: tensor.clone() for name, tensor in state.items()} if is_mapped else state


def _require_tensors(content: Any, path: Path) -> StateDict:
    if not isinstance(content, Mapping) or not content:
        raise DpoError(
            f"{path}: holds {type(content).__name__}, not a state dict",
            "Save the weights alone: torch.save(model.state_dict(), path)",
        )
    others = [str(name) for name, value in content.items() if not isinstance(value, Tensor)]
    if others:
        raise DpoError(
            f"{path}: not plain weights: {', '.join(others[:5])} are no tensors",
            "If this is a resume or training file, choose the weights that were saved beside it.",
        )
    check_tensors(content, path)
    return dict(content)
