"""The file MiniMind loads: a state dict with exactly its keys, written whole or not at all."""

from __future__ import annotations

from pathlib import Path

import torch

from dpo_cli.files import write_atomically
from dpo_cli.models.architecture import Architecture
from dpo_cli.models.convert import StateDict
from dpo_cli.models.zoo import DTYPES


def write_weights(path: Path, state: StateDict, architecture: Architecture, dtype: str) -> None:
    """Write weights for MiniMind's own scripts, whose loaders are strict.

    Args:
        path: replaced atomically.
        state: in the Hugging Face layout.
        architecture: of the weights.
        dtype: a key of `DTYPES`; what is not of it yet is rounded to the nearest.
    """
    minimind = architecture.own_names(
        {name: tensor.detach().cpu().to(DTYPES[dtype]) for name, tensor in state.items()}
    )
    # Parts of stacked experts are views, and torch.save would write the whole stack for each. The
    # tied copies stay one tensor, under both names.
    owned = {id(tensor): tensor.clone() for tensor in minimind.values()}
    content = {name: owned[id(tensor)] for name, tensor in minimind.items()}
    write_atomically(path, lambda temporary: _save(content, temporary))


def _save(content: StateDict, path: Path) -> None:
    # Through an open file: given a path, torch writes that path's name into the archive.
    with path.open("wb") as file:
        torch.save(content, file)
