"""What lies in a Hugging Face directory, by the names of its files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dpo_cli.errors import DpoError

CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"
WEIGHTS = "model.safetensors"
_INDEX = ".index.json"
_WEIGHTS = (WEIGHTS, "pytorch_model.bin")
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
"""What a tokenizer cannot be without."""
TOKENIZER_OPTIONAL = (
    *("special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "chat_template.json"),
    *("vocab.json", "merges.txt", "tokenizer.model"),
)
"""What it may have beside that."""
CARD = "README.md"
WRITTEN = frozenset((CARD, CONFIG, GENERATION_CONFIG, WEIGHTS, *TOKENIZER, *TOKENIZER_OPTIONAL))
"""All that we write into one."""


def is_model(folder: Path) -> bool:
    """Whether a directory says which model it holds."""
    return (folder / CONFIG).is_file()


def has_weights(folder: Path) -> bool:
    """Whether there are weights in it, in one file or in parts."""
    return any((folder / f"{name}{end}").is_file() for name in _WEIGHTS for end in ("", _INDEX))


def other_files(folder: Path) -> set[str]:
    """What lies in a directory beside a model: nothing, where there is no directory yet."""
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if not is_model(folder):
        return names
    weights = {path.name for path in weight_files(folder)} if has_weights(folder) else set()
    return names - WRITTEN - weights - {f"{name}{_INDEX}" for name in _WEIGHTS}


def weight_files(folder: Path) -> list[Path]:
    """The files with its weights: one, or the parts that an index names.

    Raises:
        DpoError: there are none, or the index is damaged.
    """
    for name in _WEIGHTS:
        if (folder / name).is_file():
            return [folder / name]
        index = folder / f"{name}{_INDEX}"
        if index.is_file():
            parts = read_json(index).get("weight_map")
            if not isinstance(parts, dict) or not all(map(_is_plain, parts.values())):
                raise DpoError(f"{index}: names no files", "copy or download it again")
            return sorted(folder / part for part in set(parts.values()))
    raise DpoError(
        f"{folder}: holds {CONFIG}, but no {WEIGHTS}", "was its copy or download interrupted?"
    )


def read_json(path: Path) -> Mapping[str, Any]:
    """The object in a JSON file.

    Raises:
        DpoError: it cannot be read, or holds no object.
    """
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DpoError(
            f"{path}: cannot be read as JSON ({error})", "copy or download it again"
        ) from error
    if not isinstance(content, dict):
        raise DpoError(f"{path}: holds no JSON object", "copy or download it again")
    return content


def _is_plain(name: object) -> bool:
    """Whether a name is that of a file in the directory itself."""
    return isinstance(name, str) and name not in ("", "..") and "/" not in name
