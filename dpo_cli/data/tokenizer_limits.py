"""Limits on the files and ids of a tokenizer, checked before anything is built from them."""

from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path
from typing import Any

from dpo_cli.errors import DpoError

_MAX_FILE_BYTES = 1 << 26
"""The largest known tokenizer.json, of 262,000 tokens, has 33 MB."""
_MAX_IDS = 1 << 22
_LARGE_NUMBER = re.compile(rb'"\s*:\s*[0-9]{7}')
"""A number that may be an id of `_MAX_IDS` or more. Only a file with one is parsed twice."""


def check_files(folder: Path) -> None:
    """Refuse a folder whose tokenizer files are larger than those of any tokenizer.

    Raises:
        DpoError: names the file.
    """
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "vocab.json"):
        path = folder / name
        if path.is_file() and path.stat().st_size > _MAX_FILE_BYTES:
            raise DpoError(
                f"{path} has {path.stat().st_size >> 20} MiB, too much for a tokenizer",
                "Copy or download it again.",
            )
    with contextlib.suppress(OSError):  # reported when the tokenizer is loaded
        content = (folder / "tokenizer.json").read_bytes()
        # The library makes a table up to the largest id while it reads the file.
        if _LARGE_NUMBER.search(content) and _largest_id(content) >= _MAX_IDS:
            raise DpoError(
                f"{folder / 'tokenizer.json'}: holds an id of {_MAX_IDS:,} or more",
                "Copy or download it again.",
            )


def _largest_id(content: bytes) -> int:
    """Return the largest id of the vocabulary and of the added tokens; 0 for a damaged file."""
    with contextlib.suppress(ValueError, RecursionError, AttributeError, TypeError, KeyError):
        tokenizer = json.loads(content)
        vocabulary = tokenizer["model"]["vocab"]
        ids = [*vocabulary.values()] if isinstance(vocabulary, dict) else []
        ids += [token["id"] for token in tokenizer.get("added_tokens") or ()]
        largest: int = max(ids)
        return largest
    return 0  # reported when the tokenizer is loaded


def check_ids(backend: Any, folder: Path) -> None:
    """Refuse a tokenizer with ids so large that tables over all ids do not fit into memory.

    Raises:
        DpoError: names the largest id.
    """
    ids = backend.get_vocab(with_added_tokens=True).values()
    if not ids:
        raise DpoError(f"{folder}: the tokenizer has no tokens", "Copy or download it again.")
    if max(ids) >= _MAX_IDS:
        raise DpoError(
            f"{folder}: the tokenizer has the id {max(ids)}, which no vocabulary reaches",
            "Copy or download it again.",
        )
