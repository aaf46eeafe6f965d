"""Limits on the files and ids of a tokenizer, checked before anything is built from them."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import Any

from dpo_cli.errors import DpoError

_MAX_FILE_BYTES = 1 << 26
"""The largest known tokenizer.json, of 262,000 tokens, has 33 MB."""
_MAX_IDS = 1 << 22
_HUGE_ID = re.compile(rb'(?<!\\)(?<!max_length)"\s*:\s*[0-9]{8}')
"""An id of the vocabulary or of an added token. A length to truncate to may be larger."""


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
        if _HUGE_ID.search(content):
            raise DpoError(
                f"{folder / 'tokenizer.json'}: holds an id of {_MAX_IDS:,} or more",
                "Copy or download it again.",
            )


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
