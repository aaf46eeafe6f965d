"""Tests of conversion to one JSONL: the same tokens, every row counted, complete files only."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dpo_cli.data import convert
from dpo_cli.data.chat import ChatTokenizer
from dpo_cli.data.convert import Converted, convert_source, destination
from dpo_cli.data.encoding import encode_rows
from dpo_cli.data.formats import FORMATS
from dpo_cli.data.pairs import PreferencePair, read_pairs
from dpo_cli.data.row_writers import Layout, writer_of
from dpo_cli.data.rows import MalformedError
from dpo_cli.data.sources import Source
from dpo_cli.data.tokens import EncodedRows
from dpo_cli.errors import DpoError, UsageError
from tests.support import written
from tests.support.written import Row, csv_file, jsonl, parquet

USER, ANSWER = {"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}
OTHER = {"role": "assistant", "content": "No."}
CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}],
}
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]


def ignore(phase: str, done: int, total: int, unit: str) -> None:
    pass


def put(path: Path, rows: list[Row]) -> Path:
    path.write_bytes(jsonl(rows))
    return path


def to_file(source: Source | Path, to: Path, layout: Layout, **options: Any) -> Converted:
    source = Source((source,)) if isinstance(source, Path) else source
    return convert_source(source, destination(to, source, force=True), layout, ignore, **options)


def encoded(path: Path, tokenizer: ChatTokenizer, settings: Any = None) -> EncodedRows:
    keys = {key.removeprefix("data."): value for key, value in (settings or {}).items()}
    return EncodedRows.joined(
        encode_rows(read_pairs(path), tokenizer, empty_think_ratio=0.5, seed=1, **keys)
    )


def assert_equal(first: EncodedRows, second: EncodedRows) -> None:
    assert len(first)
    columns = ("ids", "lines", "lengths", "shared", "answers", "answer_counts", "flags", "cuts")
    for name in columns:
        assert torch.equal(getattr(first, name), getattr(second, name)), name
    assert first.skipped_rows == second.skipped_rows


@pytest.fixture(scope="module")
def rows(shared: Path) -> list[Row]:
    return written.rows_of_every_format(shared, 20)


@pytest.fixture(scope="module", params=["minimind2", "minimind3"])
def tokenizer(shared: Path, request: pytest.FixtureRequest) -> ChatTokenizer:
    return ChatTokenizer(shared / "tokenizer" / request.param)


@pytest.mark.parametrize("name", FORMATS)
def test_the_tokens_are_those_of_the_source(
    name: str, rows: list[Row], tokenizer: ChatTokenizer, tmp_path: Path
) -> None:
    source = put(tmp_path / "source.jsonl", [written.FORMATS[name](row) for row in rows])
    expected = encoded(source, tokenizer)
    for layout in Layout:
        converted = to_file(source, tmp_path / f"{layout}.jsonl", layout)
        assert (converted.pairs, converted.skipped) == (20, {})
        assert not converted.skipped_path.exists()
        assert_equal(encoded(converted.path, tokenizer, converted.settings), expected)
        is_whole = name == "minimind"
        assert bool(converted.settings) == (
            (layout != "trl") and is_whole != (layout == "minimind")
        )
        (part,) = Source((converted.path,)).look().parts
        explicit = {"trl": "conversational", "sharegpt": "sharegpt", "minimind": "minimind"}
        assert part.format == ("minimind" if is_whole and layout == "trl" else explicit[layout])


MULTI_TURN = ("conversational", "sharegpt", "messages", "openai", "swift", "helpsteer", "minimind")


@pytest.mark.parametrize("name", MULTI_TURN)
def test_conversations_of_several_turns(
    name: str, rows: list[Row], tokenizer: ChatTokenizer, tmp_path: Path
) -> None:
    system = {"role": "system", "content": "Be brief."}
    longer = [
        {side: [system, *rows[n]["chosen"], *rows[n + 1][side]] for side in ("chosen", "rejected")}
        for n in range(10)
    ]
    source = put(tmp_path / "source.jsonl", [written.FORMATS[name](row) for row in longer])
    expected = encoded(source, tokenizer)
    for layout in Layout:
        converted = to_file(source, tmp_path / f"{layout}.jsonl", layout)
        assert converted.pairs == 10
        assert_equal(encoded(converted.path, tokenizer, converted.settings), expected)


ODD: dict[str, Row] = {
    "tools": {"prompt": [USER], "chosen": [CALL], "rejected": [OTHER], "tools": TOOLS},
    "tools of the system message": {
        "prompt": [{"role": "system", "content": "s", "tools": json.dumps(TOOLS)}, USER],
        "chosen": [ANSWER],
        "rejected": [OTHER],
    },
    "calls and a text": {
        "prompt": [USER],
        "chosen": [{**CALL, "content": "Let me see."}],
        "rejected": [{**OTHER, "reasoning_content": "Hm."}],
    },
    "a call with an id": {
        "prompt": [USER],
        "chosen": [{**CALL, "tool_calls": [{"id": "1", **CALL["tool_calls"][0]}]}],  # type: ignore[dict-item]
        "rejected": [OTHER],
    },
    "turns after the prompt": {
        "prompt": [USER],
        "chosen": [CALL, {"role": "tool", "content": "3"}, ANSWER],
        "rejected": [OTHER],
    },
    "a text that is JSON of parts": {
        "prompt": [USER],
        "chosen": [{**ANSWER, "content": [
            {"type": "text", "text": '[{"type": "text", "text": "inner"}]'}
        ]}],
        "rejected": [OTHER],
    },
    "a text that is JSON of messages": {
        "prompt": json.dumps([USER, ANSWER]) + "?",
        "chosen": '{"role": "clown", "content": "x"}',
        "rejected": "No.",
    },
    "sides with the prompt": {
        "prompt": "Why?", "chosen": [USER, ANSWER], "rejected": [USER, OTHER],
    },
    "an answer like the question": {
        "prompt": [USER, ANSWER, USER], "chosen": "Why?", "rejected": [OTHER],
    },
    "a question after the answer": {
        "prompt": [USER], "chosen": [ANSWER, USER, OTHER], "rejected": [OTHER, USER, ANSWER],
    },
}  # fmt: skip


@pytest.mark.parametrize("case", ODD)
def test_odd_rows_are_read_back_as_they_were(case: str, tmp_path: Path) -> None:
    source = put(tmp_path / "source.jsonl", [ODD[case]] * 3)
    pairs = list(read_pairs(source))
    assert all(isinstance(pair, PreferencePair) for pair in pairs)
    for layout in (Layout.TRL, Layout.SHAREGPT):
        converted = to_file(source, tmp_path / f"{layout}.jsonl", layout)  # type: ignore[arg-type]
        assert list(read_pairs(converted.path)) == pairs
    converted = to_file(source, tmp_path / "whole.jsonl", Layout.MINIMIND)
    for pair, own in zip(read_pairs(converted.path), pairs, strict=True):
        assert isinstance(pair, PreferencePair)
        assert isinstance(own, PreferencePair)
        assert (pair.chosen, pair.rejected, pair.tools) == (own.chosen, own.rejected, own.tools)


def test_sharegpt_is_llama_factorys(tmp_path: Path) -> None:
    source = put(tmp_path / "source.jsonl", [ODD["tools"]])
    (line,) = to_file(source, tmp_path / "to.jsonl", Layout.SHAREGPT).path.read_text().splitlines()
    assert json.loads(line) == {
        "conversations": [{"from": "human", "value": "Why?"}],
        "chosen": {"from": "function_call", "value": '{"name": "f", "arguments": {"a": 1}}'},
        "rejected": {"from": "gpt", "value": "No."},
        "tools": json.dumps(TOOLS),
    }


def test_every_row_is_in_one_of_the_files(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    good = {"prompt": "Why?", "chosen": "So.", "rejected": "No.", "id": 7, "score": None}
    lines = [json.dumps(good), "{", "", json.dumps({**good, "chosen": 3}), json.dumps(good)]
    first, second = tmp_path / "a.jsonl", tmp_path / "b.parquet"
    first.write_text("\n".join(lines))
    rated = {"instruction": "Why?", "generations": ["a", "b"], "ratings": [1.0, 1.0]}
    second.write_bytes(parquet([rated, {**rated, "ratings": [1.0, 2.0]}]))
    converted = to_file(Source((first, second)), tmp_path / "to.jsonl", Layout.TRL)
    assert (converted.pairs, converted.skipped) == (3, {"malformed": 2, "tie": 1})
    assert converted.unread == {"id": 2}
    skipped = [json.loads(line) for line in converted.skipped_path.read_text().splitlines()]
    assert [(each["file"], each["line"], each["problem"]) for each in skipped] == [
        ("a.jsonl", 2, "malformed"), ("a.jsonl", 4, "malformed"), ("b.parquet", 1, "tie"),
    ]  # fmt: skip
    assert all(each["reason"] for each in skipped)
    assert list(read_pairs(tmp_path)) != []  # the file of skipped rows contains no pairs
    assert len(converted.path.read_text().splitlines()) == 3
    # If no row is skipped, an old file of skipped rows is removed.
    first.write_text(json.dumps(good))
    assert not to_file(first, tmp_path / "to.jsonl", Layout.TRL).skipped_path.exists()


def test_whole_conversations_and_prompts_in_one_file(tmp_path: Path) -> None:
    """The common messages of both sides of a whole conversation become the prompt."""
    whole = put(tmp_path / "whole.jsonl", [{"chosen": [USER, ANSWER], "rejected": [USER, OTHER]}])
    plain = put(tmp_path / "plain.jsonl", [{"prompt": "p", "chosen": "c", "rejected": "r"}])
    converted = to_file(Source((whole, plain)), tmp_path / "to.jsonl", Layout.TRL)
    pairs = list(read_pairs(converted.path))
    assert [pair.prompt_turns for pair in pairs if isinstance(pair, PreferencePair)] == [1, 1]


def test_sides_without_a_common_turn_have_no_prompt(tmp_path: Path) -> None:
    row = {"chosen": [USER, ANSWER], "rejected": [{**USER, "content": "How?"}, OTHER]}
    good = {"chosen": [USER, ANSWER], "rejected": [USER, OTHER]}
    source = put(tmp_path / "source.jsonl", [row, good])
    assert to_file(source, tmp_path / "trl.jsonl", Layout.TRL).pairs == 2
    converted = to_file(source, tmp_path / "sharegpt.jsonl", Layout.SHAREGPT)
    assert (converted.pairs, converted.skipped) == (1, {"malformed": 1})
    reason = json.loads(converted.skipped_path.read_text())["reason"]
    assert reason == "the two sides share no turn that could be the prompt"


def test_a_row_that_would_be_read_differently_is_not_written() -> None:
    turn = {"role": "user", "content": "Why?", "from": "clown", "value": "x"}
    pair = PreferencePair(1, [turn, ANSWER], [turn, OTHER], 1)
    assert writer_of(Layout.TRL, is_whole=False).line(pair)
    with pytest.raises(MalformedError, match="read differently"):
        writer_of(Layout.SHAREGPT, is_whole=False).line(pair)
    long = {**ANSWER, "content": "x" * (33 << 20)}
    with pytest.raises(MalformedError, match="longer than 32 MiB"):
        writer_of(Layout.TRL, is_whole=False).line(
            PreferencePair(1, [USER, long], [USER, OTHER], 1)
        )


def test_no_row_is_a_pair(tmp_path: Path) -> None:
    source = put(tmp_path / "source.jsonl", [{"prompt": "p", "chosen": "c", "rejected": 3}] * 9)
    to = tmp_path / "to.jsonl"
    to.write_text("old")
    with pytest.raises(DpoError, match="no row is a pair") as caught:
        to_file(Source((source,), "plain"), to, Layout.TRL)
    assert caught.value.details[0].startswith("line 1: 'rejected' is a number")
    assert to.read_text() == "old"
    assert {path.name for path in tmp_path.iterdir()} == {"source.jsonl", "to.jsonl"}


def test_columns_of_other_names(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_bytes(csv_file([{"ask": "Why?", "good": "So.", "bad": "No."}]))
    columns = {"prompt": "ask", "chosen": "good", "rejected": "bad"}
    source = Source((path,), columns=columns)
    converted = to_file(source, tmp_path / "to.jsonl", Layout.TRL)
    assert list(read_pairs(converted.path)) == list(read_pairs(source))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("to.json", "the file is JSONL"),
        ("none/to.jsonl", "none does not exist"),
        ("source.jsonl", "would be a part of the data"),
        ("folder/to.jsonl", "would be a part of the data"),
        ("folder/../folder/to.jsonl", "would be a part of the data"),
        ("old.jsonl", "old.jsonl exists"),
        ("directory.jsonl", "directory.jsonl exists"),
    ],
)
def test_where_no_file_is_written(name: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "directory.jsonl").mkdir()
    (tmp_path / "old.jsonl").write_text("")
    source = Source((put(tmp_path / "source.jsonl", [{}]), tmp_path / "folder"))
    force = name != "old.jsonl"
    with pytest.raises(UsageError, match=reason):
        destination(tmp_path / name, source, force=force)


def test_a_killed_conversion_leaves_the_old_file(tmp_path: Path) -> None:
    source = put(tmp_path / "s.jsonl", [{"prompt": "p", "chosen": "c", "rejected": "r"}] * 5000)
    to = tmp_path / "to.jsonl"
    to.write_text("old")

    def kill(phase: str, done: int, total: int, unit: str) -> None:
        if phase == "converting" and done >= 2000:
            os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if not child:
        convert_source(Source((source,)), to, Layout.TRL, kill)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert to.read_text() == "old"
    temporary = {*tmp_path.iterdir()} - {source, to}
    assert len(temporary) == 2
    # Another conversion that is still writing keeps its file.
    other = tmp_path / f".to.jsonl.{'0' * 32}.tmp"
    with other.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert to_file(source, to, Layout.TRL).pairs == 5000
        assert {*tmp_path.iterdir()} == {source, to, other}
    assert to_file(source, to, Layout.TRL).pairs == 5000
    assert {*tmp_path.iterdir()} == {source, to}


def test_memory_does_not_grow_with_the_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convert, "_PROGRESS_ROWS", 1)
    peaks = []
    for count in (300, 6000):
        row = {"prompt": "Why?" * 100, "chosen": "So.", "rejected": "No.", "id": 1}
        source = put(tmp_path / "source.jsonl", [row, {"prompt": "p"}] * count)
        tracemalloc.start()
        to_file(source, tmp_path / "to.jsonl", Layout.TRL)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 2 * peaks[0] + (1 << 20)


def test_the_progress_is_that_of_the_rows(tmp_path: Path) -> None:
    source = put(tmp_path / "s.jsonl", [{"prompt": "p", "chosen": "c", "rejected": "r"}] * 2500)
    seen: list[tuple[str, int, int, str]] = []
    report: Callable[[str, int, int, str], None] = lambda *step: seen.append(step)  # noqa: E731
    convert_source(Source((source,)), tmp_path / "to.jsonl", Layout.TRL, report)
    assert seen == [("converting", done, 2500, "rows") for done in (0, 1000, 2000)]
