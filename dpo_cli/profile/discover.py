"""Search of a project for models, tokenizers and preference pairs.

Models and tokenizers are recognized by names and places, in MiniMind's current layout (out/,
model/, dataset/), older ones, and that of Hugging Face directories. Pairs are recognized by their
rows.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from dpo_cli.files import is_pair_file
from dpo_cli.profile.folder import TOKENIZER, WRITTEN, has_chat_template, has_weights, is_model

_WEIGHTS = ("out/full_sft_*", "full_sft_*", "checkpoints/full_sft_*")
_TOKENIZERS = ("model", "model/minimind_tokenizer", "tokenizer", "tokenizer/*", ".")
_PAIRS = (".", "dataset", "dataset/dpo", "datasets", "data")
_MODELS = (".", "out/*", "models/*", "model")
_SUFFIXES = (".pth", ".safetensors")
_IGNORED_FOLDERS = frozenset(
    (
        *("runs", "profiles", "tests", "build", "dist", "venv", "env", "node_modules"),
        *("site-packages", "wandb", "swanlab", "tensorboard", "__pycache__"),
    )
)
"""Names of folders that hold programs or results, not the user's pairs."""
_FILES_PER_FOLDER = 100
_MOST_FILES = 300
_FOLDERS_BESIDE = 50
"""Limits of a search: a folder such as /tmp may have hundreds of folders and files."""
_SCHEMA = ".schema.json"
_EVALUATION = ("test", "eval", "valid", "held", "dev")
"""Parts of names of files that are probably kept for evaluation."""


@dataclass(frozen=True)
class FoundFiles:
    """Files found, the best first, as absolute paths."""

    models: tuple[Path, ...] = ()
    """MiniMind's weights, then Hugging Face directories; those without a chat template last."""
    tokenizers: tuple[Path, ...] = ()
    pairs: tuple[Path, ...] = ()


def discover_project(project: Path, are_pairs: Callable[[Path], bool]) -> FoundFiles:
    """Search a project: its directory, and the folders below it that projects have.

    Args:
        project: directory.
        are_pairs: returns True if the first rows of a file are preference pairs.
    """
    return discover_in((project, *_folders(project)), are_pairs)


def discover_around(project: Path, are_pairs: Callable[[Path], bool]) -> FoundFiles:
    """Search the two folders above a project, and the folders beside it."""
    beside = [folder for folder in _folders(project.parent) if folder != project]
    return discover_in((*project.parents[:2], *beside[:_FOLDERS_BESIDE]), are_pairs)


def discover_in(folders: Iterable[Path], are_pairs: Callable[[Path], bool]) -> FoundFiles:
    """Search these folders: in each, the places that files have in a checkout or a project."""
    folders = tuple(folders)
    weights = [path for path in _matches(folders, _WEIGHTS) if _is_weights(path)]
    models = [path for path in _matches(folders, _MODELS) if is_whole_model(path)]
    pairs = [path for path in islice(_pair_files(folders), _MOST_FILES) if are_pairs(path)]
    return FoundFiles(
        models=(*weights, *sorted(models, key=lambda path: not has_chat_template(path))),
        tokenizers=tuple(path for path in _matches(folders, _TOKENIZERS) if _is_tokenizer(path)),
        pairs=tuple(sorted(pairs, key=_rank)),
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


def is_whole_model(path: Path) -> bool:
    """Return True for a Hugging Face directory with weights."""
    return is_model(path) and has_weights(path)


def _matches(folders: Iterable[Path], patterns: Iterable[str]) -> list[Path]:
    patterns = tuple(patterns)
    # A dict keeps the order and drops files that several patterns match.
    return list(
        dict.fromkeys(
            path
            for folder in folders
            for pattern in patterns
            for path in ([folder] if pattern == "." else sorted(folder.glob(pattern)))
        )
    )


def _pair_files(folders: Iterable[Path]) -> Iterator[Path]:
    """Yield the files that may hold pairs, by their names."""
    seen: set[Path] = set()
    for folder in _matches(folders, _PAIRS):
        if folder.name in _IGNORED_FOLDERS or folder in seen:
            continue
        seen.add(folder)
        with contextlib.suppress(OSError):
            files = (path for path in sorted(folder.iterdir()) if _may_hold_pairs(path))
            yield from islice(files, _FILES_PER_FOLDER)


def _may_hold_pairs(path: Path) -> bool:
    return is_pair_file(path) and path.name not in WRITTEN and not path.name.endswith(_SCHEMA)


def _rank(pairs: Path) -> tuple[bool, bool]:
    name = pairs.name.lower()
    return any(part in name for part in _EVALUATION), "dpo" not in name


def _folders(parent: Path) -> list[Path]:
    with contextlib.suppress(OSError):
        return sorted(p for p in parent.iterdir() if p.is_dir() and not p.name.startswith("."))
    return []


def _is_weights(path: Path) -> bool:
    return path.suffix in _SUFFIXES and path.is_file()


def _is_tokenizer(path: Path) -> bool:
    # The tokenizer in a Hugging Face directory belongs to the weights there.
    return all((path / name).is_file() for name in TOKENIZER) and not is_whole_model(path)
