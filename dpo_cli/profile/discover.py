"""Looks for files around a folder: MiniMind's weights and tokenizers, other models, pairs.

Names and places alone are looked at, of MiniMind's current layout (out/, model/, dataset/) and of
older ones; what the files hold is for `dpo check` to say.
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
    """What lies around, the nearest first; absolute paths."""

    weights: tuple[Path, ...]
    tokenizers: tuple[Path, ...]
    pairs: tuple[Path, ...]
    models: tuple[Path, ...] = ()
    """Hugging Face directories."""


def discover_around(start: Path) -> FoundFiles:
    """Look in `start`, the folders in it, the two above it, and the folders beside it."""
    start = start.absolute()
    parents = list(start.parents[:2])
    return discover_in(start, *_folders(start), *parents, *_folders(start.parent))


def discover_in(*folders: Path) -> FoundFiles:
    """Look in these folders only."""
    return FoundFiles(
        weights=_matches(folders, _WEIGHTS, _is_weights),
        tokenizers=_matches(folders, _TOKENIZERS, _is_tokenizer),
        pairs=_matches(folders, _PAIRS, is_pair_file),
        models=_matches(folders, _MODELS, _is_model),
    )


def minimind_version_of(tokenizer: Path) -> int:
    """The MiniMind version whose tokenizer a folder seems to hold: only the third one thinks."""
    for name in ("chat_template.jinja", "tokenizer_config.json"):
        with contextlib.suppress(OSError, UnicodeDecodeError):
            if "<think>" in (tokenizer / name).read_text(encoding="utf-8"):
                return 3
    return 2


def is_moe_file(model_weights: Path) -> bool:
    """Whether MiniMind's name for the file says that it is a mixture of experts."""
    return model_weights.stem.endswith("_moe")


def _matches(
    folders: Iterable[Path], patterns: Iterable[str], is_one: Callable[[Path], bool]
) -> tuple[Path, ...]:
    """What fits a pattern in one of the folders; once, however many ways lead there."""
    patterns = tuple(patterns)
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
    """That of a Hugging Face directory is for its own weights alone."""
    return all((path / name).is_file() for name in TOKENIZER) and not _is_model(path)


def _is_model(path: Path) -> bool:
    return is_model(path) and has_weights(path)
