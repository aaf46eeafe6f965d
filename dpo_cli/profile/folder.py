"""Hugging Face model directories, by the names of their files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dpo_cli.errors import DpoError, first_line

CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"
WEIGHTS = "model.safetensors"
_INDEX = ".index.json"
_MAX_JSON_BYTES = 1 << 24
_MAX_NAME_BYTES = 255
_WEIGHTS = (WEIGHTS, "pytorch_model.bin")
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
"""Required files of a tokenizer."""
TOKENIZER_OPTIONAL = (
    *("special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "chat_template.json"),
    *("vocab.json", "merges.txt", "tokenizer.model"),
)
"""Optional files of a tokenizer."""
CARD = "README.md"
WRITTEN = frozenset((CARD, CONFIG, GENERATION_CONFIG, WEIGHTS, *TOKENIZER, *TOKENIZER_OPTIONAL))
"""Files that an export writes."""


def is_model(folder: Path) -> bool:
    """Return True if the directory has a model config."""
    return (folder / CONFIG).is_file()


def has_weights(folder: Path) -> bool:
    """Return True if the directory has weights, in one file or sharded."""
    return any((folder / f"{name}{end}").is_file() for name in _WEIGHTS for end in ("", _INDEX))


def other_files(folder: Path) -> set[str]:
    """Return the names of files that belong to no model; empty if there is no directory."""
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if not is_model(folder):
        return names
    weights = {path.name for path in weight_files(folder)} if has_weights(folder) else set()
    return names - WRITTEN - weights - {f"{name}{_INDEX}" for name in _WEIGHTS}


def weight_files(folder: Path) -> list[Path]:
    """Return the files with the weights: one, or the shards that an index names.

    Raises:
        DpoError: there are no weights, or the index is damaged.
    """
    for name in _WEIGHTS:
        if (folder / name).is_file():
            return [folder / name]
        index = folder / f"{name}{_INDEX}"
        if index.is_file():
            parts = read_json(index).get("weight_map")
            if not isinstance(parts, dict) or not all(map(_is_plain, parts.values())):
                raise DpoError(f"{index}: has no valid weight_map", "Copy or download it again.")
            return sorted(folder / part for part in set(parts.values()))
    raise DpoError(
        f"{folder}: has {CONFIG}, but no {WEIGHTS}",
        "Copy or download it again; the last time may have been interrupted.",
    )


def read_json(path: Path) -> Mapping[str, Any]:
    """Read the object in a JSON file.

    Raises:
        DpoError: the file cannot be read, or holds no object.
    """
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise ValueError(f"it has {path.stat().st_size >> 20} MiB")
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DpoError(
            f"{path}: cannot be read as JSON ({first_line(error)})", "Copy or download it again."
        ) from error
    if not isinstance(content, dict):
        raise DpoError(f"{path}: is not a JSON object", "Copy or download it again.")
    return content


def _is_plain(name: object) -> bool:
    # An index must not point outside of its directory.
    if not isinstance(name, str) or name in ("", ".", "..") or "/" in name or "\0" in name:
        return False
    return len(name.encode(errors="replace")) <= _MAX_NAME_BYTES
