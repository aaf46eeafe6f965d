"""Tests with real pairs in each format: the format is detected, and the tokens are the same."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from dpo_cli.data import formats
from dpo_cli.data.chat import ChatTokenizer
from dpo_cli.data.encoding import encode_rows
from dpo_cli.data.pairs import PreferencePair, SkippedRow, read_pairs
from dpo_cli.data.sources import Source
from dpo_cli.data.tokens import EncodedRows
from dpo_cli.errors import DpoError
from dpo_cli.profile.pairs import Data
from tests.support.cli import REPOSITORY
from tests.support.written import (
    COMPRESSIONS,
    CONTAINERS,
    FORMATS,
    Row,
    jsonl,
    rows_of_every_format,
)

NEEDS = {"pairs.parquet": "pyarrow", ".zst": "backports.zstd"}


@pytest.fixture(scope="module")
def rows(shared: Path) -> list[Row]:
    return rows_of_every_format(shared, 40)


@pytest.fixture(scope="module", params=["minimind2", "minimind3"])
def tokenizer(shared: Path, request: pytest.FixtureRequest) -> ChatTokenizer:
    return ChatTokenizer(shared / "tokenizer" / request.param)


def encoded(source: Source | Path, tokenizer: ChatTokenizer) -> EncodedRows:
    return EncodedRows.joined(
        encode_rows(read_pairs(source), tokenizer, empty_think_ratio=0.5, seed=1)
    )


def assert_equal(first: EncodedRows, second: EncodedRows) -> None:
    for name in ("ids", "lines", "lengths", "shared", "answers", "answer_counts"):
        assert torch.equal(getattr(first, name), getattr(second, name)), name
    assert first.skipped_rows == second.skipped_rows == ()


def write(path: Path, rows: list[Row]) -> Path:
    path.write_bytes(CONTAINERS[path.name](rows) if path.name in CONTAINERS else jsonl(rows))
    return path


def test_a_profile_can_state_every_format() -> None:
    stated = get_args(Data.model_fields["format"].annotation)
    assert stated == ("auto", *formats.FORMATS)
    assert set(formats.FORMATS) == set(FORMATS)


@pytest.fixture(scope="module")
def expected(
    rows: list[Row], tokenizer: ChatTokenizer, tmp_path_factory: pytest.TempPathFactory
) -> EncodedRows:
    """Return the tokens of the rows in MiniMind's format."""
    return encoded(write(tmp_path_factory.mktemp("expected") / "pairs", rows), tokenizer)


@pytest.mark.parametrize("name", FORMATS)
def test_a_pair_has_the_same_tokens_in_every_format(
    rows: list[Row], expected: EncodedRows, tokenizer: ChatTokenizer, tmp_path: Path, name: str
) -> None:
    path = write(tmp_path / "pairs", [FORMATS[name](row) for row in rows])
    assert Source((path,)).look().parts[0].format == name
    assert list(read_pairs(path)) == list(read_pairs(Source((path,), name)))
    assert len(expected) == 40
    assert_equal(encoded(path, tokenizer), expected)


# Compression does not depend on the format of the bytes.
FILES = [
    *((name, container, "") for name in FORMATS for container in CONTAINERS),
    *(("plain", container, each) for container in CONTAINERS for each in COMPRESSIONS),
]


@pytest.mark.parametrize(("name", "container", "compression"), FILES)
def test_a_pair_is_the_same_in_every_file(
    rows: list[Row], tmp_path: Path, name: str, container: str, compression: str
) -> None:
    for needed in (container, compression):
        if needed in NEEDS:
            pytest.importorskip(NEEDS[needed])
    if compression and container == "pairs.parquet":
        pytest.skip("Parquet compresses its own columns")
    content = CONTAINERS[container]([FORMATS[name](row) for row in rows])
    path = tmp_path / f"{container}{compression}"
    path.write_bytes(COMPRESSIONS[compression](content) if compression else content)
    places = Source((path,)).look()
    (part,) = places.parts
    assert (part.format, part.first, part.rows) == (name, 1, 40)
    pairs = list(read_pairs(write(tmp_path / "expected", rows)))
    # Only whole conversations do not separate the prompt from the answer.
    turns = None if name == "minimind" else 1
    expected = [
        replace(pair, prompt_turns=turns) for pair in pairs if isinstance(pair, PreferencePair)
    ]
    assert list(read_pairs(path)) == expected
    assert list(read_pairs(path, range(9, 18), places)) == expected[8:17]
    unit = "line" if "jsonl" in container else "row"
    assert places.name(7) == f"{unit} 7"
    assert places.names([7]) == f"{unit} 7"
    assert places.names([7, 9]) == f"{unit}s 7, 9"


def one(row: Row, tmp_path: Path, **options: Any) -> PreferencePair | SkippedRow:
    path = tmp_path / "one.jsonl"
    path.write_bytes(jsonl([row]))
    (found,) = read_pairs(Source((path,), **options))
    return found


def turns(*texts: str) -> list[Row]:
    """Return messages of a user and an assistant in turn."""
    roles = ("user", "assistant") * len(texts)
    return [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]


def of_sharegpt(*said: tuple[str, str]) -> list[Row]:
    return [{"from": speaker, "value": value} for speaker, value in said]


def test_several_turns_and_tools(tmp_path: Path) -> None:
    call = '{"name": "weather", "arguments": {"city": "Rome"}}'
    row = {
        "conversations": of_sharegpt(
            ("human", "Hi"), ("gpt", "Hello"), ("human", "?"), ("function_call", call),
            ("observation", "sunny"),
        ),
        "chosen": {"from": "gpt", "value": "Sunny."},
        "rejected": {"from": "gpt", "value": "Rain."},
        "system": "Be brief.",
    }  # fmt: skip
    pair = one(row, tmp_path)
    assert isinstance(pair, PreferencePair)
    weather = {"name": "weather", "arguments": {"city": "Rome"}}
    assert pair.chosen == [
        {"role": "system", "content": "Be brief."},
        *turns("Hi", "Hello", "?"),
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"type": "function", "function": weather}],
        },
        {"role": "tool", "content": "sunny"},
        {"role": "assistant", "content": "Sunny."},
    ]


def test_templates_leave_out_different_messages(shared: Path, tmp_path: Path) -> None:
    """MiniMind version 2's template ignores tools and a system message after the first turn."""
    late = [*turns("a", "b"), {"role": "system", "content": "s"}, *turns("c")]
    tool = [*turns("a", "b"), {"role": "tool", "content": "t"}]
    call = [*turns("a"), {"role": "assistant", "tool_calls": [{"name": "f", "arguments": {}}]}]
    first = [{"role": "system", "content": "s"}, *turns("a")]
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(
        jsonl(
            [
                {side: [*begin, {"role": "assistant", "content": side}] for side in SIDES}
                for begin in (late, tool, call, first)
            ]
        )
    )
    rows = encoded(path, ChatTokenizer(shared / "tokenizer/minimind2"))
    assert [(row.line, row.problem, row.reason) for row in rows.skipped_rows] == [
        (1, "left-out", "the chat template leaves out later system turns"
         " (message 3)"),
        (2, "left-out", "the chat template leaves out tool turns (message 3)"),
        (3, "left-out", "the chat template leaves out tool calls (message 2)"),
    ]  # fmt: skip
    assert rows.lines.tolist() == [4]
    assert len(encoded(path, ChatTokenizer(shared / "tokenizer/minimind3"))) == 4


SIDES = ("chosen", "rejected")


@pytest.mark.parametrize(
    ("row", "prompt", "chosen"),
    [
        ({"chosen": "The sky is blue.", "rejected": "The sky is black."}, "The sky is", "blue."),
        ({"chosen": "Why?\n\nYes", "rejected": "Why?\n\nYes, so"}, "Why?", "Yes"),
        ({"chosen": "天是什么颜色？蓝", "rejected": "天是什么颜色？黑"}, "天是什么颜色？", "蓝"),
        (
            {side: f"\n\nHuman: Hi\n\nAssistant: {side}" for side in ("chosen", "rejected")},
            "Hi",
            "chosen",
        ),
    ],
)  # fmt: skip
def test_texts_that_begin_with_their_prompt(
    row: Row, prompt: str, chosen: str, tmp_path: Path
) -> None:
    pair = one(row, tmp_path)
    assert isinstance(pair, PreferencePair)
    assert pair.chosen == turns(prompt, chosen)
    assert pair.rejected[0] == pair.chosen[0]


def test_columns_of_other_names(tmp_path: Path) -> None:
    row = {"question": "Why?", "best": "So.", "worst": "No.", "id": 3}
    columns = {"prompt": "question", "chosen": "best", "rejected": "worst"}
    pair = one(row, tmp_path, columns=columns)
    assert pair == PreferencePair(1, turns("Why?", "So."), turns("Why?", "No."), prompt_turns=1)
    with pytest.raises(DpoError) as caught:
        one(row, tmp_path)
    assert "known format: 'question', 'best', 'worst', 'id'" in caught.value.message
    assert 'data.columns = { prompt = "question"' in caught.value.remedy
    with pytest.raises(DpoError) as caught:
        one(row, tmp_path, columns={**columns, "chosen": "good"})
    assert "no column 'good', which data.columns.chosen names" in caught.value.message
    assert caught.value.remedy.endswith("'question', 'best', 'worst', 'id'.")


def test_two_texts_and_a_question_are_not_texts_that_begin_with_it(tmp_path: Path) -> None:
    row = {"question": "Is it?", "chosen": "The end", "rejected": "The start"}
    answers = turns("Is it?", "The end"), turns("Is it?", "The start")
    assert one(row, tmp_path) == PreferencePair(1, *answers, prompt_turns=1)
    with pytest.raises(DpoError, match="no known format"):
        one({"problem": "Is it?", "chosen": "The end", "rejected": "The start"}, tmp_path)


@pytest.mark.parametrize(
    ("row", "format", "reason"),
    [
        (
            {"prompt": "p", "chosen": 3, "rejected": "r"},
            "plain",
            "'chosen' is a number (3), expected a text",
        ),
        ({"chosen": "c", "rejected": "r"}, "plain", "no 'prompt'"),
        ({"chosen": "c", "rejected": "r"}, "implicit", "need a common beginning"),
        ({"chosen": "a", "rejected": "a b"}, "implicit", "need a common beginning"),
        ({"chosen": "c", "rejected": "r"}, "sharegpt", "no 'conversations'"),
        ({"prompt": [], "chosen": [], "rejected": []}, "conversational", "is an empty list"),
        (
            {"prompt": turns("a"), "chosen": turns("a"), "rejected": turns("a", "b")},
            "conversational",
            "'chosen' has no assistant message",
        ),
        (
            {"conversations": of_sharegpt(("alien", "x")), "chosen": {}, "rejected": {}},
            "sharegpt",
            "'conversations', message 1: from 'alien' is not one of system, user",
        ),
        (
            {"conversations": [{"from": "human"}], "chosen": {}, "rejected": {}},
            "sharegpt",
            "'value' is null, expected a text",
        ),
        (
            {"conversations": of_sharegpt(("function_call", "f()")), "chosen": 1, "rejected": 1},
            "sharegpt",
            "a function call must be JSON",
        ),
        (
            {"prompt": "p", "chosen": "c", "rejected": "r", "tools": "[3]"},
            "plain",
            "'tools' has a number (3), expected objects",
        ),
        (
            {"prompt": "p", "chosen": "c", "rejected": "r", "system": 3},
            "plain",
            "'system' is a number (3), expected a text",
        ),
    ],
)
def test_malformed_rows_have_a_reason(row: Row, format: str, reason: str, tmp_path: Path) -> None:
    found = one(row, tmp_path, format=format)
    assert isinstance(found, SkippedRow)
    assert found.problem == "malformed"
    assert reason in found.reason


def test_most_of_the_first_rows_decide(rows: list[Row], tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(b"{\n" + jsonl([rows[0], *map(FORMATS["plain"], rows[1:5])]))
    first, second, *others = read_pairs(path)
    assert isinstance(first, SkippedRow)
    assert isinstance(second, SkippedRow)
    assert second.reason == "no 'prompt'"
    assert len(others) == 4


def test_the_examples_of_the_page_are_of_the_formats_that_it_lists(tmp_path: Path) -> None:
    page = (REPOSITORY / "docs/data.md").read_text(encoding="utf-8")
    names = re.findall(r"^\| `([a-z]+)` \| .*\|$", page.partition("## Formats")[2], re.MULTILINE)
    examples = page.partition("```json\n")[2].partition("```")[0].splitlines()
    assert names[: len(examples)] == list(FORMATS)
    for name, example in zip(FORMATS, examples, strict=True):
        path = tmp_path / "one.jsonl"
        path.write_text(example)
        assert Source((path,)).look().parts[0].format == name
        (pair,) = read_pairs(path)
        assert isinstance(pair, PreferencePair)
        assert pair.chosen[-2:] == turns("Why?", "Because.")
        assert pair.rejected[-2:] == turns("Why?", "No.")
        assert pair.unread == {}
