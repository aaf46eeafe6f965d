"""Write weights in the format of their makers' tools, atomically.

MiniMind's weights are one file, a state dict with exactly MiniMind's keys. Those of any other model
are a Hugging Face directory with configuration and tokenizer.
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
from dpo_cli.models.huggingface import HuggingFace, with_older_names
from dpo_cli.models.spec import Architecture
from dpo_cli.profile import folder


def write_model(
    path: Path, state: StateDict, architecture: Architecture, dtype: str, tokenizer: Path | None
) -> None:
    """Write a MiniMind file or a Hugging Face directory, by the architecture.

    Args:
        path: the file or directory; may exist already.
        state: in the Hugging Face layout.
        architecture: of the weights.
        dtype: a key of `DTYPES`; weights of another dtype are rounded to the nearest value. In the
            dtype of the starting weights, each weight has its own, see `Architecture.own_dtypes`.
        tokenizer: folder whose tokenizer files are copied into a directory; not used for a file.
    """
    if isinstance(architecture, HuggingFace):
        assert tokenizer is not None
        write_folder(path, state, architecture, dtype, tokenizer)
    else:
        write_weights(path, state, architecture, dtype)


def write_folder(
    path: Path, state: StateDict, architecture: HuggingFace, dtype: str, tokenizer: Path
) -> None:
    """Write a Hugging Face directory, or replace the weights in one.

    At every moment all weights in the directory are of one step: they are a single file that is
    replaced atomically, and the files beside it are the same for every step of a run.

    Args:
        path, state, architecture, dtype, tokenizer: see `write_model`.
    """
    if path.is_symlink():  # replace the link itself; never write to its target
        path.unlink()
    path.mkdir(exist_ok=True)
    for name in folder.tokenizer_files(tokenizer):
        source, target = tokenizer / name, path / name
        target.parent.mkdir(exist_ok=True)
        if not _has_same_content(source, target):
            write_atomically(target, partial(_copy, source))
    # "torch_dtype" is the older name of "dtype"; "_name_or_path" may be a path of another machine.
    settings = {
        name: value
        for name, value in architecture.settings.items()
        if name not in ("torch_dtype", "_name_or_path")
    }
    settings |= {"architectures": [architecture.class_name], "dtype": dtype}
    _write_json(path / folder.CONFIG, with_older_names(settings))
    if architecture.generation:
        _write_json(path / folder.GENERATION_CONFIG, architecture.generation)
    own = architecture.own_dtypes(dtype)
    rounded = {
        name: tensor.detach().cpu().to(DTYPES[own.get(name, dtype)], copy=True).contiguous()
        for name, tensor in state.items()
    }
    write_atomically(
        path / folder.WEIGHTS, lambda temporary: save_file(rounded, temporary, {"format": "pt"})
    )


def size_bytes(path: Path) -> int:
    """Return the size of a file, or of all files in a directory."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def write_weights(path: Path, state: StateDict, architecture: Architecture, dtype: str) -> None:
    """Write a state dict for MiniMind's own scripts, whose loaders are strict.

    Args:
        path: replaced atomically.
        state: in the Hugging Face layout.
        architecture: of the weights.
        dtype: a key of `DTYPES`; weights of another dtype are rounded to the nearest value.
    """
    native = architecture.to_native_names(
        {name: tensor.detach().cpu().to(DTYPES[dtype]) for name, tensor in state.items()}
    )
    # torch.save writes the whole storage of a view: each slice of stacked experts would write the
    # whole stack, hence the copies. Tied weights stay one tensor under two names, written once.
    owned = {id(tensor): tensor.clone() for tensor in native.values()}
    content = {name: owned[id(tensor)] for name, tensor in native.items()}
    write_atomically(path, lambda temporary: _save(content, temporary))


def _has_same_content(source: Path, target: Path) -> bool:
    return target.is_file() and target.read_bytes() == source.read_bytes()


def _copy(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        write_text_atomically(path, text)


def _save(content: StateDict, path: Path) -> None:
    # Through an open file: given a path, torch writes the path's name into the archive, and equal
    # weights would have different hashes.
    with path.open("wb") as file:
        torch.save(content, file)
