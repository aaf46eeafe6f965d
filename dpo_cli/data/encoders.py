"""Encoders from texts to token ids, which also count the tokens before given character positions.

Both encoders give the same result. `PieceEncoder` encodes repeated pieces of text once and is used
for tokenizers where this is exact. `OffsetEncoder` works for all others.
"""

from __future__ import annotations

import itertools
import json
import re
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

_GROUP_CHARACTERS = 1 << 20


class Placed(NamedTuple):
    """Ids of one text, and numbers of tokens for each requested position.

    tokens_before: tokens that start before the position. tokens_ended: tokens that end at or before
    it. The two numbers differ if a token extends across the position.
    """

    ids: array[int]
    tokens_before: list[int]
    tokens_ended: list[int]


class Encoder(Protocol):
    """Interface of both encoders."""

    def encode(self, texts: Sequence[str], positions: Sequence[Sequence[int]]) -> list[Placed]:
        """Return one `Placed` per text; `positions[i]` are character positions in `texts[i]`."""
        ...


def make_encoder(backend: Any) -> Encoder:
    """Return the faster encoder if it is exact for `backend`, a result of `with_true_offsets`."""
    if PieceEncoder.is_exact_for(backend):
        return PieceEncoder(backend)
    return OffsetEncoder(backend)


class OffsetEncoder:
    """Encoder of whole texts that uses the tokenizer's own offsets."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self._typecode = typecode(backend)

    def encode(self, texts: Sequence[str], positions: Sequence[Sequence[int]]) -> list[Placed]:
        """Encode each text; see `Encoder.encode`."""
        placed = []
        remaining = iter(positions)
        for group in _groups(texts):
            for encoding in self._backend.encode_batch(group, add_special_tokens=False):
                starts = [start for start, _ in encoding.offsets]
                ends = [end for _, end in encoding.offsets]
                wanted = next(remaining)
                before = [bisect_left(starts, position) for position in wanted]
                ended = [bisect_right(ends, position) for position in wanted]
                placed.append(Placed(array(self._typecode, encoding.ids), before, ended))
        return placed


class PieceEncoder:
    """Encoder that encodes each distinct piece between added tokens once.

    A tokenizer splits a text at its added tokens before anything else, so the ids of a piece do not
    depend on its neighbors. The prompt of both sides and the headers of all turns are encoded once.
    In a byte-level vocabulary each character of a token is one byte, so the widths of the tokens
    give their positions, and no offsets are needed.
    """

    def __init__(self, backend: Any) -> None:
        added = {id: token.content for id, token in backend.get_added_tokens_decoder().items()}
        vocabulary = backend.get_vocab(with_added_tokens=True)
        self._backend = backend
        self._typecode = typecode(backend)
        # Longest first: of several added tokens at one position the tokenizer takes the longest.
        longest_first = sorted(added.values(), key=len, reverse=True)
        self._splitter = re.compile(f"({'|'.join(map(re.escape, longest_first))})")
        self._widths = torch.zeros(max(vocabulary.values()) + 1, dtype=torch.int64)
        for token, id in vocabulary.items():
            self._widths[id] = len(added[id].encode()) if id in added else len(token)

    @staticmethod
    def is_exact_for(backend: Any) -> bool:
        """Return True if pieces can be encoded separately and widths give token positions."""
        parts = json.loads(backend.to_str())
        model, splitter = parts["model"], parts["pre_tokenizer"] or {}
        post_processor = parts["post_processor"] or {"type": "ByteLevel"}
        shifts = ("lstrip", "rstrip", "single_word", "normalized")
        return (
            model["type"] == "BPE"
            and not model["dropout"]
            and parts["normalizer"] is None
            and splitter.get("type") == "ByteLevel"
            and not splitter["add_prefix_space"]
            # Called without special tokens, these post-processors only shift offsets.
            and post_processor["type"] in ("ByteLevel", "TemplateProcessing")
            and bool(parts["added_tokens"])
            and all(
                token["content"] and not any(token[shift] for shift in shifts)
                for token in parts["added_tokens"]
            )
            and not backend.encode_special_tokens
        )

    def encode(self, texts: Sequence[str], positions: Sequence[Sequence[int]]) -> list[Placed]:
        """Encode distinct pieces once; see `Encoder.encode`."""
        numbers: dict[str, int] = {}
        # The pieces of each text, by number.
        layouts = [
            [numbers.setdefault(piece, len(numbers)) for piece in self._splitter.split(text)]
            for text in texts
        ]
        pieces = list(numbers)
        ids = [
            array(self._typecode, encoding.ids)
            for group in _groups(pieces)
            for encoding in self._backend.encode_batch_fast(group, add_special_tokens=False)
        ]
        # All pieces one after another: the index of each piece's first token, the byte where it
        # starts, and the bytes up to each token.
        flat = _concatenated(ids, self._typecode)
        first_tokens = torch.tensor([0, *itertools.accumulate(map(len, ids))])
        first_bytes = torch.tensor(
            [0, *itertools.accumulate(len(piece.encode()) for piece in pieces)]
        )
        widths = self._widths[as_tensor(flat).to(torch.int64)]
        token_bytes = torch.cat([torch.zeros(1, dtype=torch.int64), widths.cumsum(0)])
        if not torch.equal(token_bytes[first_tokens], first_bytes):
            # A character outside the vocabulary produced no token, so widths do not add up.
            return OffsetEncoder(self._backend).encode(texts, positions)

        # Map every position of every text to a piece, a byte inside that piece, and the number of
        # tokens of the text before that piece.
        piece_numbers, bytes_inside, tokens_before_piece = [], [], []
        for layout, wanted in zip(layouts, positions, strict=True):
            ends = list(itertools.accumulate(len(pieces[number]) for number in layout))
            tokens_so_far = [0, *itertools.accumulate(len(ids[number]) for number in layout)]
            for position in wanted:
                index = bisect_left(ends, position)
                piece = pieces[layout[index]]
                inside = position - ends[index] + len(piece)
                piece_numbers.append(layout[index])
                bytes_inside.append(len(piece[:inside].encode()))
                tokens_before_piece.append(tokens_so_far[index])
        piece_of = torch.tensor(piece_numbers, dtype=torch.int64)
        byte_of = first_bytes[piece_of] + torch.tensor(bytes_inside, dtype=torch.int64)
        # `searchsorted` counts the tokens of all pieces before; the text has others before it.
        shift = torch.tensor(tokens_before_piece, dtype=torch.int64) - first_tokens[piece_of]
        started = torch.searchsorted(token_bytes[:-1], byte_of) + shift
        ended = torch.searchsorted(token_bytes[1:], byte_of, right=True) + shift
        tokens_before, tokens_ended = iter(started.tolist()), iter(ended.tolist())

        return [
            Placed(
                _concatenated([ids[number] for number in layout], self._typecode),
                list(itertools.islice(tokens_before, len(wanted))),
                list(itertools.islice(tokens_ended, len(wanted))),
            )
            for layout, wanted in zip(layouts, positions, strict=True)
        ]


def _groups(texts: Sequence[str]) -> Iterator[list[str]]:
    """Split texts into groups to encode at once; encoding takes up to 300 bytes per character."""
    group: list[str] = []
    characters = 0
    for text in texts:
        if group and characters + len(text) > _GROUP_CHARACTERS:
            yield group
            group, characters = [], 0
        group.append(text)
        characters += len(text)
    if group:
        yield group


def typecode(backend: Any) -> str:
    """Return the `array` type code that holds every id: "H" (16 bits) or "i" (32 bits)."""
    largest: int = max(backend.get_vocab(with_added_tokens=True).values())
    return "H" if largest < 1 << 16 else "i"


def as_tensor(values: array[int]) -> Tensor:
    """Return a (N,) tensor over the same memory: uint16 for "H", int32 for "i"."""
    dtype = torch.uint16 if values.typecode == "H" else torch.int32
    return torch.frombuffer(values, dtype=dtype) if values else torch.empty(0, dtype=dtype)


def _concatenated(parts: Sequence[array[int]], code: str) -> array[int]:
    whole = array(code)
    for part in parts:
        whole += part
    return whole


def with_true_offsets(backend: Any) -> Any:
    """Copy a `tokenizers.Tokenizer`, with offsets that start where each token starts.

    The byte-level post-processor moves offsets past leading spaces. That would hide a token that
    straddles the end of a header. Ids do not change.
    """
    specification = json.loads(backend.to_str())
    pending = [specification.get("post_processor")]
    while pending:
        part = pending.pop()
        if isinstance(part, dict):
            pending += part.get("processors", [])
            if part.get("type") == "ByteLevel":
                part["trim_offsets"] = False
    specification["truncation"] = specification["padding"] = None
    return type(backend).from_str(json.dumps(specification))
