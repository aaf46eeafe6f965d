"""Tests of text in pieces: a character that is split over tokens appears whole."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models

from dpo_cli.data.chat import ChatTokenizer
from dpo_cli.data.text_stream import TextStream

TEXT = "Grüße, 你好，世界！ 我喜欢🍜 und 𠮷野家.\n<think>\n\n</think>\n def f(x):\n    return x\n"


def told(stream: TextStream, ids: Sequence[int]) -> list[str]:
    return [*map(stream.add, ids), stream.rest()]


@pytest.mark.parametrize("name", ["minimind2", "minimind3"])
def test_real_tokens(shared: Path, name: str) -> None:
    tokenizer = ChatTokenizer(shared / "tokenizer" / name)
    text = TEXT + "<|im_start|>" + TEXT
    ids = tokenizer._tokenizer.encode(text, add_special_tokens=False)
    pieces = told(TextStream(tokenizer.decode), ids)
    assert "".join(pieces) == text
    assert len(pieces) == len(ids) + 1
    assert "" in pieces[:-1]  # some characters consist of several tokens
    assert "\ufffd" not in "".join(pieces)


def by_bytes(ids: Sequence[int]) -> str:
    return bytes(ids).decode(errors="replace")


def test_a_token_for_each_byte() -> None:
    pieces = told(TextStream(by_bytes), list(TEXT.encode()))
    assert [piece for piece in pieces if piece] == list(TEXT)


def test_invalid_bytes_appear_as_soon_as_they_are_known_to_be_invalid() -> None:
    assert told(TextStream(by_bytes), [0xE4, 0xBD, 0x41, 0xE4]) == ["", "", "\ufffdA", "", "\ufffd"]
    assert told(TextStream(by_bytes), list("a\ufffdb".encode())) == ["a", "", "", "", "\ufffdb", ""]
    generator = random.Random(5)
    for _ in range(200):
        ids = [generator.choice((0x41, 0xE4, 0xBD, 0xA0, 0xF0, 0x9F)) for _ in range(30)]
        assert "".join(told(TextStream(by_bytes), ids)) == by_bytes(ids)


def test_only_new_tokens_are_decoded() -> None:
    longest = 0

    def decode(ids: Sequence[int]) -> str:
        nonlocal longest
        longest = max(longest, len(ids))
        return by_bytes(ids)

    told(TextStream(decode), list((TEXT * 20).encode()))
    assert longest <= 8


def test_a_decoder_that_drops_the_first_space() -> None:
    """Llama's tokens begin with a space, which decoding drops at the start of a text."""
    vocabulary = {"▁the": 0, "▁good": 1, "ness": 2, "\n": 3}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="\n"))
    tokenizer.decoder = decoders.Metaspace()
    ids = [0, 1, 2, 3, 0, 1]
    pieces = told(TextStream(lambda ids: tokenizer.decode(list(ids))), ids)
    assert "".join(pieces) == tokenizer.decode(ids) == "the goodness\n the good"
