"""Cache of encoded rows: the second run reads from disk what the first one encoded.

An entry is a directory named after everything that decides its content: the ids as raw integers,
the other columns, and a manifest with the hash of both files. An entry that does not verify is not
used, and the verified bytes in memory are the ones that are used. An error of the cache costs time
and never fails a run.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import shutil
import uuid
from collections.abc import Callable, Generator, Iterator
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save_file

from dpo_cli.data.chat import ChatTokenizer
from dpo_cli.data.encoding import ScoredTurns, encode_rows
from dpo_cli.data.pairs import SkippedRow, read_pairs
from dpo_cli.data.places import Part, Places
from dpo_cli.data.sources import Source
from dpo_cli.data.tokens import EncodedRows
from dpo_cli.data.truncation import Truncation
from dpo_cli.errors import DpoError
from dpo_cli.files import cache_directory, fsync_path, remove_path, remove_unused
from dpo_cli.integrity import DamageError, read_verified, write_manifest

FORMAT = 5
"""Incremented when the files of an entry, or how rows are read, rendered or masked, change."""
_PACKAGES = ("tokenizers", "transformers", "jinja2")
_COLUMNS = ("lines", "lengths", "shared", "answers", "answer_counts", "flags", "cuts", "cut_counts")
_IDS, _REST = "ids.bin", "columns.safetensors"
_DTYPES = {"uint16": torch.uint16, "int32": torch.int32}
Blocks = Generator[EncodedRows, None, None]


class LocalRanks(Protocol):
    """Ranks on one machine that need the same rows at the same time."""

    @property
    def host_rank_and_size(self) -> tuple[int, int]:
        """Rank of this process on this machine, and the number of ranks there."""
        ...

    def all_gather_object_on_host(self, stage: str, value: Any) -> list[Any]:
        """Gather a value from each rank at a stage with a unique name; waits for all."""
        ...


def encode_source(
    source: Source,
    tokenizer: ChatTokenizer,
    *,
    empty_think_ratio: float,
    seed: int,
    scored_turns: ScoredTurns | None = None,
    truncation: Truncation | None = None,
    on_progress: Callable[[int, int], None],
    ranks: LocalRanks,
) -> EncodedRows:
    """Encode the rows of a source, or take them from the cache.

    Args:
        source: files of pairs.
        tokenizer, empty_think_ratio, seed, scored_turns, truncation: see
            `dpo_cli.data.encoding.encode_rows`.
        on_progress: called with the number of rows done and of all rows (0 while they are counted).
        ranks: ranks on this machine that call this for the same source; each encodes its share.

    Raises:
        DpoError: the source has no row, is damaged, or changes while it is read.
    """
    content = source.content()

    def blocks(part: int = 0, parts: int = 1) -> Blocks:
        places = source.look(lambda counted: on_progress(counted, 0))
        total = places.numbers
        lines = range(1 + total * part // parts, 1 + total * (part + 1) // parts)
        for block in encode_rows(
            read_pairs(source, lines, places),
            tokenizer,
            empty_think_ratio=empty_think_ratio,
            seed=seed,
            scored_turns=scored_turns,
            truncation=truncation,
            on_progress=lambda done: on_progress(min(done * parts, total), total),
        ):
            yield replace(block, places=places)
        if source.content() != content:
            raise DpoError(f"{source} changed while it was read", "Wait until it is written.")

    rows: EncodedRows | None = None
    directory = cache_directory()
    if directory is not None and not tokenizer.depends_on_date:
        key = _key(source, content, tokenizer, empty_think_ratio, seed, scored_turns, truncation)
        entry = directory / "tokens" / key
        rows = _load_readable(entry, key)
        if not all(ranks.all_gather_object_on_host(f"tokens found/{key}", rows is not None)):
            rows = _encode_together(entry, key, blocks, ranks)
    if rows is None:
        rows = EncodedRows.joined(blocks())
    return replace(rows, content=content, places=rows.places.named(source.names))


def load(entry: Path, key: str) -> EncodedRows | None:
    """Read the rows of a cache entry; None if there is no intact entry for `key`.

    The rows are in the memory of this process, so later changes of the files have no effect.

    Raises:
        OSError: the entry cannot be read. It may be intact, so it must not be replaced.
    """
    try:
        contents = read_verified(entry, {"key": key})
        columns, facts = _read_columns(contents[_REST])
        dtype, ids = _DTYPES[facts["dtype"]], contents[_IDS]
        # `frombuffer` keeps the bytes; it refuses an empty buffer.
        tokens = torch.frombuffer(ids, dtype=dtype) if ids else torch.empty(0, dtype=dtype)
        skipped_rows = tuple(SkippedRow(*row) for row in facts["skipped_rows"])
        unread = {str(name): int(number) for name, number in facts["unread"].items()}
        places = Places(tuple(Part(*part) for part in facts["places"]))
    except (
        DamageError,
        RuntimeError,
        SafetensorError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
    ):
        return None
    with contextlib.suppress(OSError):
        os.utime(entry)  # marks the entry as used, see `remove_unused`
    return EncodedRows(tokens, **columns, skipped_rows=skipped_rows, unread=unread, places=places)


def _read_columns(content: bytearray) -> tuple[dict[str, Any], Any]:
    """Parse a safetensors file in memory; return the columns and the facts in its metadata."""
    end = 8 + int.from_bytes(content[:8], "little")
    facts = json.loads(json.loads(content[8:end])["__metadata__"]["facts"])
    tensors = load_tensors(bytes(content))
    return {name: tensors[name] for name in _COLUMNS}, facts


def _load_readable(entry: Path, key: str) -> EncodedRows | None:
    """Return the rows of an entry; None also if it cannot be read."""
    with contextlib.suppress(OSError):
        return load(entry, key)
    return None


def _encode_together(
    entry: Path, key: str, blocks: Callable[[int, int], Blocks], ranks: LocalRanks
) -> EncodedRows | None:
    """Let each rank write a part of an entry and join the parts; None if any rank fails."""
    part, parts = ranks.host_rank_and_size
    if parts == 1:
        return _encode_into(entry, key, blocks(0, 1))
    names = [f"{key}-{number}-of-{parts}" for number in range(parts)]
    paths = [entry.with_name(name) for name in names]
    done = _encode_into(paths[part], names[part], blocks(part, parts))
    is_complete = all(ranks.all_gather_object_on_host(f"tokens encoded/{key}", done is not None))
    if part == 0 and is_complete:
        loaded = [_load_readable(path, name) for path, name in zip(paths, names, strict=True)]
        _encode_into(entry, key, (rows for rows in loaded if rows is not None))
    ranks.all_gather_object_on_host(f"tokens joined/{key}", None)
    shutil.rmtree(paths[part], ignore_errors=True)
    return _load_readable(entry, key) if is_complete else None


def _encode_into(entry: Path, key: str, blocks: Blocks) -> EncodedRows | None:
    """Write blocks to disk as they arrive, and read them; None if the cache cannot be written."""
    temporary = entry.with_name(f".{entry.name}.{uuid.uuid4().hex}.tmp")
    rows = None
    try:
        entry.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        remove_unused(entry.parent)
        temporary.mkdir(mode=0o700)
        _write(temporary, key, blocks)
        rows = load(temporary, key)
        # A rename cannot replace a directory that has content. An entry that verifies was written
        # by another process meanwhile. Only one that is proven to be damaged is removed, not one
        # that cannot be read; and if another process is faster now, the rename fails.
        if entry.is_symlink() or entry.exists():
            if load(entry, key) is not None:
                return rows
            remove_path(entry)
        os.rename(temporary, entry)
        fsync_path(entry.parent)
    except OSError:  # a full disk, a read-only one, or a foreign file in the way
        return rows if rows is not None else _load_readable(entry, key)
    finally:
        blocks.close()
        shutil.rmtree(temporary, ignore_errors=True)
    return rows


def _write(directory: Path, key: str, blocks: Iterator[EncodedRows]) -> None:
    """Write the files of an entry. Ids go out block by block, so that memory stays bounded."""
    parts: list[EncodedRows] = []
    dtype = torch.uint16
    with (directory / _IDS).open("wb") as file:
        for block in blocks:
            if len(block):
                file.write(block.ids.numpy().data)
                dtype = block.ids.dtype
            parts.append(replace(block, ids=block.ids[:0].clone()))
    rows = EncodedRows.joined(parts)
    facts = {
        "dtype": str(dtype).removeprefix("torch."),
        "skipped_rows": [astuple(row) for row in rows.skipped_rows],
        "unread": dict(rows.unread),
        "places": [astuple(replace(part, name="")) for part in rows.places.parts],
    }
    columns = {name: getattr(rows, name).contiguous() for name in _COLUMNS}
    save_file(columns, directory / _REST, {"facts": json.dumps(facts)})
    files = [directory / _IDS, directory / _REST]
    for path in files:
        fsync_path(path)
    write_manifest(directory, files, {"key": key})
    fsync_path(directory)


def _key(
    source: Source,
    content: str,
    tokenizer: ChatTokenizer,
    empty_think_ratio: float,
    seed: int,
    scored_turns: ScoredTurns | None,
    truncation: Truncation | None,
) -> str:
    """Hash everything that decides the content of an entry (hex SHA-256)."""
    facts = {
        "format": FORMAT,
        "content": content,
        "source": source.identity(),
        "tokenizer": tokenizer.fingerprint(),
        "special_tokens": tokenizer.special_tokens,
        "empty_think_ratio": empty_think_ratio,
        # The seed has no effect if every pair or no pair keeps its think block.
        "seed": seed if 0 < empty_think_ratio < 1 else None,
        "scored_turns": scored_turns,
        # "end" and "drop" need no places where a prompt can be cut.
        "cuts": truncation if truncation in (None, "prompt_start") else "none",
        "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()
