"""Tests that encoding in blocks, pieces and columns equals encoding each side alone."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from dpo_cli.data.chat import ChatTokenizer, TokenizedPair
from dpo_cli.data.encoders import OffsetEncoder, PieceEncoder, make_encoder
from dpo_cli.data.encoding import encode_rows
from dpo_cli.data.pairs import PreferencePair, SkippedRow, read_pairs
from dpo_cli.data.tokens import EncodedRows
from tests.support.plainly import cut_plainly, encode_plainly
from tests.support.written import parse_row

THINK = "<think>\n\n</think>\n\n"
NASTY = [
    "<|im_start|>assistant\nI am quoted<|im_end|>\n",
    "<|im_start|>",
    "<|im_end|>\n<|im_end|>",
    "<|im_start|><|im_start|>assistant",
    "<|im_sta",
    "    four spaces first",
    "\n\n\nthree newlines first",
    " \t\r\n ",
    "",
    "a",
    "b",
    "ab",
    "🙂👩‍👩‍👧‍👦🏳️‍🌈 and 🙂",
    "你好，世界。这是一个测试句子！",
    "é\u0301 \u202e \u2028 \x00 \x7f ￿",
    THINK + "thought",
    THINK,
    "<think>\nhm\n</think>\n\nso it is",
    "</think>",
    "ends in spaces   ",
    "𝕳𝖊𝖑𝖑𝖔 " * 3 + "<|endoftext|>",
    "<tool_call>\n{}\n</tool_call>",
]


@pytest.fixture(scope="module", params=["minimind2", "minimind3"])
def tokenizer(request: pytest.FixtureRequest, shared: Path) -> ChatTokenizer:
    return ChatTokenizer(shared / "tokenizer" / request.param)


def message(role: str, content: str, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def nasty_rows() -> Iterator[PreferencePair | SkippedRow]:
    """Yield rows with each text in each place: question, answer, earlier answer, system message."""
    line = itertools.count(1)
    for first, second in itertools.product(NASTY, NASTY):
        asked = [message("user", first)]
        answers = message("assistant", second), message("assistant", second + "!")
        yield PreferencePair(next(line), [*asked, answers[0]], [*asked, answers[1]])
        earlier = [message("system", first), message("user", "q"), message("assistant", first)]
        yield PreferencePair(
            next(line),
            [*earlier, message("user", second), message("assistant", first)],
            [*earlier, message("user", second), message("assistant", second)],
        )
    yield SkippedRow(next(line), "malformed", "as it was read")
    twice = [message("user", "q"), message("assistant", " x"), message("assistant", " y")]
    yield PreferencePair(next(line), twice, [*twice, message("user", "?")])
    yield PreferencePair(next(line), twice[1:], [message("assistant", "z")])
    # Sides that share nothing, or one turn of three; other keys beside the text.
    yield PreferencePair(next(line), twice, [message("user", "other"), *twice[1:]])
    yield PreferencePair(next(line), [*twice[:2], message("user", "r"), twice[2]], twice)
    thought = message("assistant", "so", reasoning_content="because")
    yield PreferencePair(next(line), [twice[0], thought], [twice[0], message("assistant", "so")])
    yield PreferencePair(next(line), twice, [twice[0], message("assistant", "n", tool_calls=[3])])


def assert_the_same(
    rows: Sequence[PreferencePair | SkippedRow],
    tokenizer: ChatTokenizer,
    *lengths: int,
    ratio: float,
) -> EncodedRows:
    encoded = EncodedRows.joined(encode_rows(rows, tokenizer, empty_think_ratio=ratio, seed=3))
    pairs, skipped_rows = encode_plainly(rows, tokenizer, empty_think_ratio=ratio, seed=3)
    for length in lengths:
        expected, lost = cut_plainly(pairs, skipped_rows, length)
        cut = encoded.cut(length)
        assert list(cut.skipped_rows) == lost
        assert len(cut.kept) == len(expected)
        for pair, plain in zip(cut.kept, expected, strict=True):
            assert_equal(pair, plain)
    return encoded


def assert_equal(pair: TokenizedPair, plain: TokenizedPair) -> None:
    assert pair.line == plain.line
    for side in ("chosen", "rejected"):
        ours, expected = getattr(pair, side), getattr(plain, side)
        assert ours.ids.dtype == torch.int64
        assert torch.equal(ours.ids, expected.ids), (pair.line, side)
        assert torch.equal(ours.response, expected.response), (pair.line, side)


@pytest.mark.parametrize("name", ["dpo_en_zh_400", "dpo_judged_train"])
def test_real_rows(shared: Path, tokenizer: ChatTokenizer, name: str) -> None:
    rows = list(itertools.islice(read_pairs(shared / f"data/{name}.jsonl"), 400))
    encoded = assert_the_same(rows, tokenizer, 256, 1024, 100_000, ratio=0.5)
    assert len(encoded) == 400
    assert isinstance(tokenizer._encoder, PieceEncoder)


@pytest.mark.parametrize("ratio", [0.0, 1.0])
def test_difficult_rows(tokenizer: ChatTokenizer, ratio: float) -> None:
    encoded = assert_the_same(list(nasty_rows()), tokenizer, *range(1, 60, 7), 10_000, ratio=ratio)
    assert len(encoded) > 900
    problems = {row.problem for row in encoded.cut(30).skipped_rows}
    # MiniMind version 2's template ignores tool calls.
    left_out = {"left-out"} if tokenizer.folder.name == "minimind2" else set()
    assert problems == {"malformed", "identical", "truncated"} | left_out


def changed(tokenizer: ChatTokenizer, change: Callable[[dict[str, Any]], object]) -> Any:
    """Change an entry of the tokenizer's `tokenizer.json`."""
    parts = json.loads(tokenizer._backend.to_str())
    change(parts)
    return type(tokenizer._backend).from_str(json.dumps(parts))


def test_messages_too_deep_to_compare_are_refused_like_others(tokenizer: ChatTokenizer) -> None:
    def nested(depth: int) -> list[Any]:
        deep: list[Any] = []
        for _ in range(depth):
            deep = [deep]
        return [message("user", "q", extra=deep), message("assistant", "a")]

    with pytest.raises(ValueError, match="the chat template fails"):
        tokenizer.render(nested(3000), nested(3000))


CHANGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "dropout": lambda parts: parts["model"].update(dropout=0.1),
    "normalizer": lambda parts: parts.update(normalizer={"type": "NFKC"}),
    "prefix space": lambda parts: parts["pre_tokenizer"].update(add_prefix_space=True),
    "other words": lambda parts: parts.update(pre_tokenizer={"type": "WhitespaceSplit"}),
    "no words": lambda parts: parts.update(pre_tokenizer=None),
    "strips": lambda parts: parts["added_tokens"][1].update(lstrip=True),
    "words only": lambda parts: parts["added_tokens"][2].update(single_word=True),
    "normalized": lambda parts: parts["added_tokens"][0].update(normalized=True),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_tokenizer_of_another_kind_is_asked_for_its_offsets(
    tokenizer: ChatTokenizer, change: Callable[[dict[str, Any]], object]
) -> None:
    assert isinstance(make_encoder(changed(tokenizer, change)), OffsetEncoder)


def test_both_encoders_agree_where_the_first_gives_up(tokenizer: ChatTokenizer) -> None:
    """A vocabulary without all bytes drops characters, so widths do not add up."""

    def lose(parts: dict[str, Any]) -> None:
        lost = set("ðĊ")  # of the emoji, and the newline
        model = parts["model"]
        model["merges"] = [pair for pair in model["merges"] if not lost & set("".join(pair))]
        made = {"".join(pair) for pair in model["merges"]}
        added = {token["content"] for token in parts["added_tokens"]}
        model["vocab"] = {
            token: id
            for token, id in model["vocab"].items()
            if token in added or (not lost & set(token) and (len(token) == 1 or token in made))
        }

    backend = changed(tokenizer, lose)
    texts = ["x 🙂 y\nz<|im_end|>\n", "plain", "<|im_start|>a\n\nb"]
    places = [[0, 2, 3, 6, len(texts[0])], [0, 5], [13, 15, 16]]
    assert isinstance(make_encoder(backend), PieceEncoder)
    pieces = make_encoder(backend).encode(texts, places)
    assert pieces == OffsetEncoder(backend).encode(texts, places)
    assert len(pieces[0].ids) < len(tokenizer._encoder.encode(texts, places)[0].ids)


def test_the_longest_of_added_tokens_is_taken(tokenizer: ChatTokenizer) -> None:
    def add(parts: dict[str, Any]) -> None:
        first = len(parts["model"]["vocab"])
        for id, more in enumerate(("us", "user", "u", "use"), start=first):
            added = parts["added_tokens"][1] | {"id": id, "content": "<|im_start|>" + more}
            parts["added_tokens"].append(added)

    backend = changed(tokenizer, add)
    texts = ["<|im_start|>user\nWhy?", "<|im_start|>use", "<|im_start|>assistant"]
    places = [range(len(text) + 1) for text in texts]
    ours = make_encoder(backend).encode(texts, places)
    assert isinstance(make_encoder(backend), PieceEncoder)
    assert ours == OffsetEncoder(backend).encode(texts, places)
    assert ours[0].tokens_before[13:17] == [1] * 4


def test_every_place_of_a_text(tokenizer: ChatTokenizer) -> None:
    texts = [*NASTY, "".join(NASTY), "", "".join(reversed(NASTY))]
    places = [range(len(text) + 1) for text in texts]
    ours = tokenizer._encoder.encode(texts, places)
    assert ours == OffsetEncoder(tokenizer._backend).encode(texts, places)


def test_what_texts_share_is_encoded_once(
    tokenizer: ChatTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = PieceEncoder(tokenizer._backend)
    encoded: list[str] = []

    class Watched:
        def encode_batch_fast(self, texts: list[str], **options: Any) -> Any:
            encoded.extend(texts)
            return tokenizer._backend.encode_batch_fast(texts, **options)

    monkeypatch.setattr(encoder, "_backend", Watched())
    prompt = "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>"
    encoder.encode([prompt + "one", prompt + "two", prompt + "one"], [[], [], []])
    assert sorted(encoded) == sorted({*encoded})
    assert "user\nWhy?" in encoded


def row(line: int) -> PreferencePair | SkippedRow:
    sides = [[message("user", f"q{line}"), message("assistant", text)] for text in ("yes", "no")]
    return parse_row(line, json.dumps({"chosen": sides[0], "rejected": sides[1]}).encode())


def test_progress_counts_rows_of_all_kinds(tokenizer: ChatTokenizer) -> None:
    rows = [row(n) if n % 3 else SkippedRow(n, "malformed", "") for n in range(1, 601)]
    heard: list[int] = []
    list(encode_rows(rows, tokenizer, empty_think_ratio=0.0, seed=1, on_progress=heard.append))
    assert heard == sorted(heard)
    assert heard[-1] == 600
    assert len(heard) > 1


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_error_of_the_progress_callback_stops_the_encoding(
    tokenizer: ChatTokenizer, error: type[BaseException]
) -> None:
    threads = threading.active_count()

    def interrupt(done: int) -> None:
        raise error

    with pytest.raises(error):
        list(
            encode_rows(
                map(row, itertools.count(1)),
                tokenizer,
                empty_think_ratio=0.0,
                seed=1,
                on_progress=interrupt,
            )
        )
    assert threading.active_count() == threads
