"""The encoded rows of a source, kept between runs: the second run maps what the first one computed.

An entry is a safetensors file named after everything that decides its content, and it holds a
digest of itself. What does not verify is not believed, and whatever else fails about the cache
costs time, never the run.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import struct
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open

from dpo_cli.data.chat import ChatTokenizer
from dpo_cli.data.encoding import encode_rows
from dpo_cli.data.pairs import SkippedRow, read_pairs
from dpo_cli.data.sources import Part, Places, Source
from dpo_cli.data.tokens import EncodedRows
from dpo_cli.errors import DpoError
from dpo_cli.files import cache_directory, remove_unused, write_atomically

FORMAT = 2
"""Counts up when the columns, or how rows are read, rendered or masked, change."""
_PACKAGES = ("tokenizers", "transformers", "jinja2")
_COLUMNS = ("lines", "lengths", "shared", "answers", "answer_counts")
_HEADER_BYTES = 4096
_NO_DIGEST = "0" * 64
_HASHED_BYTES = 1 << 22
Blocks = Generator[EncodedRows, None, None]
_DTYPES = {torch.uint16: "U16", torch.int32: "I32", torch.uint8: "U8"}


class LocalRanks(Protocol):
    """Processes on one machine that need the same rows at the same time."""

    @property
    def host_rank_and_size(self) -> tuple[int, int]:
        """This one's number, and how many they are."""
        ...

    def all_gather_object_on_host(self, stage: str, value: Any) -> list[Any]:
        """What each has to say at a stage whose name is used once; waits for all."""
        ...


def encode_source(
    source: Source,
    tokenizer: ChatTokenizer,
    *,
    empty_think_ratio: float,
    seed: int,
    on_progress: Callable[[int, int], None],
    crew: LocalRanks,
) -> EncodedRows:
    """The encoded rows of a source of pairs, from the cache if they are there.

    Args:
        source: files, and what their columns mean.
        tokenizer, empty_think_ratio, seed: see `dpo_cli.data.encoding.encode_rows`.
        on_progress: called with the number of rows done so far and of all (0 while they are
            counted).
        crew: the processes on this machine that call this for the same source; each encodes its
            share.

    Raises:
        DpoError: it holds no row, is damaged, or is being written.
    """
    content = source.content()

    def blocks(part: int = 0, parts: int = 1) -> Generator[EncodedRows, None, None]:
        places = source.look(lambda counted: on_progress(counted, 0))
        total = places.numbers
        lines = range(1 + total * part // parts, 1 + total * (part + 1) // parts)
        for block in encode_rows(
            read_pairs(source, lines, places),
            tokenizer,
            empty_think_ratio=empty_think_ratio,
            seed=seed,
            on_progress=lambda done: on_progress(min(done * parts, total), total),
        ):
            yield replace(block, places=places)
        if source.content() != content:
            raise DpoError(f"{source} changed while it was read", "start when it is written")

    rows: EncodedRows | None = None
    directory = cache_directory()
    if directory is not None and not tokenizer.tells_the_time:
        key = _key(source, content, tokenizer, empty_think_ratio, seed)
        entry = directory / "tokens" / f"{key}.safetensors"
        rows = load(entry, key)
        if not all(crew.all_gather_object_on_host(f"tokens found/{key}", rows is not None)):
            rows = _encode_together(entry, key, blocks, crew)
    if rows is None:
        rows = EncodedRows.joined(blocks())
    return replace(rows, content=content, places=rows.places.named(source.names))


def load(entry: Path, key: str) -> EncodedRows | None:
    """The rows that `entry` holds for `key`, mapped from the disk; None if it is not whole."""
    try:
        with entry.open("rb") as file:
            header = file.read(_HEADER_BYTES)
            stated = json.loads(header[8:])["__metadata__"]
            if stated["key"] != key or stated["digest"] != _digest(file.fileno(), header):
                return None
        with safe_open(entry, framework="pt") as tensors:
            columns = {name: tensors.get_tensor(name) for name in ("ids", *_COLUMNS)}
            told = json.loads(bytes(tensors.get_tensor("told").numpy()))
            skipped_rows = tuple(SkippedRow(*row) for row in told["skipped_rows"])
            places = Places(tuple(Part(*part) for part in told["places"]))
        with contextlib.suppress(OSError):
            os.utime(entry)  # used, and therefore not to be removed
    # Whatever a damaged file can make of these: ValueError is JSON's and Unicode's, too.
    except (
        OSError,
        SafetensorError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        RecursionError,
    ):
        return None
    return EncodedRows(**columns, skipped_rows=skipped_rows, places=places)


def _encode_together(
    entry: Path, key: str, blocks: Callable[[int, int], Blocks], crew: LocalRanks
) -> EncodedRows | None:
    """Write an entry that each process makes a part of, and map it; None if that fails for any."""
    part, parts = crew.host_rank_and_size
    if parts == 1:
        return _encode_into(entry, key, blocks(0, 1))
    names = [f"{key}-{number}-of-{parts}" for number in range(parts)]
    paths = [entry.with_name(f"{name}.safetensors") for name in names]
    done = _encode_into(paths[part], names[part], blocks(part, parts))
    are_whole = all(crew.all_gather_object_on_host(f"tokens encoded/{key}", done is not None))
    if part == 0 and are_whole:
        loaded = [load(path, name) for path, name in zip(paths, names, strict=True)]
        _encode_into(entry, key, (its.without_rest() for its in loaded if its is not None))
    crew.all_gather_object_on_host(f"tokens joined/{key}", None)
    with contextlib.suppress(OSError):
        paths[part].unlink()
    return load(entry, key) if are_whole else None


def _encode_into(entry: Path, key: str, blocks: Blocks) -> EncodedRows | None:
    """Write blocks to the disk as they come, and map them; None if that fails."""
    try:
        entry.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        remove_unused(entry.parent)
        write_atomically(entry, lambda temporary: _write(temporary, key, blocks))
    except OSError:  # a full disk, a read-only one, a file in the way
        return None
    finally:
        blocks.close()
    return load(entry, key)


def _write(path: Path, key: str, blocks: Iterator[EncodedRows]) -> None:
    """One entry. Ids go out block by block, so that memory does not grow with them."""
    parts: list[EncodedRows] = []
    written, dtype = 0, torch.uint16
    with path.open("w+b") as file:
        file.write(bytes(_HEADER_BYTES))
        for block in blocks:
            if len(block):
                file.write(block.ids.numpy().data)
                written, dtype = written + len(block.ids), block.ids.dtype
            parts.append(replace(block, ids=block.ids[:0].clone()))
        if written % 2:  # what follows is four bytes wide
            file.write(bytes(dtype.itemsize))
            written += 1
        rows = EncodedRows.joined(parts)
        told = json.dumps(
            {
                "skipped_rows": [astuple(row) for row in rows.skipped_rows],
                "places": [astuple(replace(part, name="")) for part in rows.places.parts],
            }
        )
        tensors = {name: getattr(rows, name) for name in _COLUMNS}
        tensors["told"] = torch.frombuffer(bytearray(told.encode()), dtype=torch.uint8)
        for tensor in tensors.values():
            file.write(tensor.contiguous().numpy().tobytes())
        entries: dict[str, Any] = {}
        end = 0
        for name, tensor, shape in [
            ("ids", torch.empty(0, dtype=dtype), [written]),
            *((name, tensor, list(tensor.shape)) for name, tensor in tensors.items()),
        ]:
            begin, end = end, end + tensor.dtype.itemsize * torch.Size(shape).numel()
            entries[name] = {
                "dtype": _DTYPES[tensor.dtype],
                "shape": shape,
                "data_offsets": [begin, end],
            }
        file.flush()
        digest = _digest(file.fileno(), _header(entries, key, _NO_DIGEST))
        file.seek(0)
        file.write(_header(entries, key, digest))


def _header(entries: dict[str, Any], key: str, digest: str) -> bytes:
    """(4096 bytes) of the safetensors format, filled up with spaces as it allows."""
    stated = {"__metadata__": {"digest": digest, "key": key}, **entries}
    text = json.dumps(stated).encode().ljust(_HEADER_BYTES - 8)
    return struct.pack("<Q", len(text)) + text


def _digest(descriptor: int, header: bytes) -> str:
    """SHA-256 over the SHA-256 of the header without its digest and of each 4 MiB that follow."""
    size = os.fstat(descriptor).st_size
    stated = json.loads(header[8:])["__metadata__"]["digest"]
    begins = range(_HEADER_BYTES, size, _HASHED_BYTES)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # hashing lets others compute
        digests = pool.map(
            lambda begin: hashlib.sha256(os.pread(descriptor, _HASHED_BYTES, begin)).digest(),
            begins,
        )
        head = hashlib.sha256(header.replace(stated.encode(), _NO_DIGEST.encode(), 1)).digest()
        return hashlib.sha256(head + b"".join(digests)).hexdigest()


def _key(
    source: Source, content: str, tokenizer: ChatTokenizer, empty_think_ratio: float, seed: int
) -> str:
    """Hex SHA-256 of everything that decides what an entry holds."""
    facts = {
        "format": FORMAT,
        "content": content,
        "source": source.identity(),
        "tokenizer": tokenizer.fingerprint(),
        "special_tokens": tokenizer.special_tokens,
        "empty_think_ratio": empty_think_ratio,
        # Of no consequence where the decision is always the same.
        "seed": seed if 0 < empty_think_ratio < 1 else None,
        "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()
