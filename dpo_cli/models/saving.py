"""What a run's weights become on disk, written whole or not at all.

MiniMind's are one file, a state dict with exactly its keys; any other model is a Hugging Face
directory, with its configuration and tokenizer.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from dpo_cli.compute.device import DTYPES
from dpo_cli.files import write_atomically, write_text_atomically
from dpo_cli.models.convert import StateDict
from dpo_cli.models.huggingface import HuggingFace
from dpo_cli.models.spec import Architecture
from dpo_cli.profile import folder


def write_model(
    path: Path, state: StateDict, architecture: Architecture, dtype: str, tokenizer: Path | None
) -> None:
    """Write weights in the form that their makers' tools load.

    Args:
        path: a file, or a directory, which may be there already.
        state: in the Hugging Face layout.
        architecture: of the weights.
        dtype: a key of `DTYPES`; what is not of it yet is rounded to the nearest.
        tokenizer: the folder that a directory gets its tokenizer from; a file has none.
    """
    if isinstance(architecture, HuggingFace):
        assert tokenizer is not None
        write_folder(path, state, architecture, dtype, tokenizer)
    else:
        write_weights(path, state, architecture, dtype)


def write_folder(
    path: Path, state: StateDict, architecture: HuggingFace, dtype: str, tokenizer: Path
) -> None:
    """Write a Hugging Face directory, or renew the weights in one.

    Whenever somebody looks, all weights are of one state: they are one file, replaced atomically,
    and what lies beside it is the same in every state of a run.

    Args:
        path, state, architecture, dtype, tokenizer: see `write_model`.
    """
    path.mkdir(exist_ok=True)
    names = (*folder.TOKENIZER, *folder.TOKENIZER_OPTIONAL)
    for source in (tokenizer / name for name in names):
        if source.is_file() and not _is_same(source, path / source.name):
            write_atomically(path / source.name, partial(_copy, source))
    settings = {name: its for name, its in architecture.settings.items() if name != "torch_dtype"}
    settings |= {"architectures": [architecture.class_name], "dtype": dtype}
    _write_json(path / folder.CONFIG, settings)
    if architecture.generation:
        _write_json(path / folder.GENERATION_CONFIG, architecture.generation)
    own = {
        name: tensor.detach().cpu().to(DTYPES[dtype], copy=True).contiguous()
        for name, tensor in state.items()
    }
    write_atomically(
        path / folder.WEIGHTS, lambda temporary: save_file(own, temporary, {"format": "pt"})
    )


def size_bytes(path: Path) -> int:
    """Of a file, or of all files in a directory."""
    files = path.iterdir() if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files)


def write_weights(path: Path, state: StateDict, architecture: Architecture, dtype: str) -> None:
    """Write weights for MiniMind's own scripts, whose loaders are strict.

    Args:
        path: replaced atomically.
        state: in the Hugging Face layout.
        architecture: of the weights.
        dtype: a key of `DTYPES`; what is not of it yet is rounded to the nearest.
    """
    minimind = architecture.to_native_names(
        {name: tensor.detach().cpu().to(DTYPES[dtype]) for name, tensor in state.items()}
    )
    # Parts of stacked experts are views, and torch.save would write the whole stack for each. The
    # tied copies stay one tensor, under both names.
    owned = {id(tensor): tensor.clone() for tensor in minimind.values()}
    content = {name: owned[id(tensor)] for name, tensor in minimind.items()}
    write_atomically(path, lambda temporary: _save(content, temporary))


def _is_same(source: Path, target: Path) -> bool:
    return target.is_file() and target.read_bytes() == source.read_bytes()


def _copy(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        write_text_atomically(path, text)


def _save(content: StateDict, path: Path) -> None:
    # Through an open file: given a path, torch writes that path's name into the archive.
    with path.open("wb") as file:
        torch.save(content, file)
