"""Search of a folder and its neighbors for weights, tokenizers, models and preference pairs.

Matches names and places only, in MiniMind's current layout (out/, model/, dataset/) and older ones.
`dpo check` reads the contents.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from dpo_cli.files import is_pair_file
from dpo_cli.profile.folder import TOKENIZER, has_weights, is_model

_WEIGHTS = ("out/full_sft_*", "full_sft_*", "checkpoints/full_sft_*")
_TOKENIZERS = ("model", "model/minimind_tokenizer", "tokenizer", "tokenizer/*", ".")
_PAIRS = (
    *("dataset/*dpo*.jsonl", "dataset/dpo/*.jsonl", "data/*dpo*.jsonl", "*dpo*.jsonl"),
    *("dataset/*dpo*", "dataset/dpo/*", "data/*dpo*", "*dpo*.parquet"),
)
_MODELS = (".", "out/*", "models/*")
_SUFFIXES = (".pth", ".safetensors")


@dataclass(frozen=True)
class FoundFiles:
    """Files found, nearest first, as absolute paths."""

    weights: tuple[Path, ...]
    tokenizers: tuple[Path, ...]
    pairs: tuple[Path, ...]
    models: tuple[Path, ...] = ()
    """Hugging Face directories."""


def discover_around(start: Path) -> FoundFiles:
    """Search `start`, its subfolders, the two folders above it, and its sibling folders."""
    start = start.absolute()
    parents = list(start.parents[:2])
    return discover_in(start, *_folders(start), *parents, *_folders(start.parent))


def discover_in(*folders: Path) -> FoundFiles:
    """Search these folders only, without their subfolders."""
    return FoundFiles(
        weights=_matches(folders, _WEIGHTS, _is_weights),
        tokenizers=_matches(folders, _TOKENIZERS, _is_tokenizer),
        pairs=_matches(folders, _PAIRS, is_pair_file),
        models=_matches(folders, _MODELS, _is_model),
    )


def minimind_version_of(tokenizer: Path) -> int:
    """Guess the MiniMind version of a tokenizer: only version 3 has think blocks."""
    for name in ("chat_template.jinja", "tokenizer_config.json"):
        with contextlib.suppress(OSError, UnicodeDecodeError):
            if "<think>" in (tokenizer / name).read_text(encoding="utf-8"):
                return 3
    return 2


def is_moe_file(model_weights: Path) -> bool:
    """Return True if the file name marks a mixture of experts."""
    return model_weights.stem.endswith("_moe")


def _matches(
    folders: Iterable[Path], patterns: Iterable[str], is_one: Callable[[Path], bool]
) -> tuple[Path, ...]:
    patterns = tuple(patterns)
    # A dict keeps the order and drops files that several patterns match.
    return tuple(
        dict.fromkeys(
            path
            for folder in folders
            for pattern in patterns
            for path in ([folder] if pattern == "." else sorted(folder.glob(pattern)))
            if is_one(path)
        )
    )


def _folders(parent: Path) -> list[Path]:
    with contextlib.suppress(OSError):
        return sorted(p for p in parent.iterdir() if p.is_dir() and not p.name.startswith("."))
    return []


def _is_weights(path: Path) -> bool:
    return path.suffix in _SUFFIXES and path.is_file()


def _is_tokenizer(path: Path) -> bool:
    # The tokenizer in a Hugging Face directory belongs to the weights there.
    return all((path / name).is_file() for name in TOKENIZER) and not _is_model(path)


def _is_model(path: Path) -> bool:
    return is_model(path) and has_weights(path)
