"""Tests of prompts from a file, and of lines that are no prompts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dpo_cli.data.prompts import read_prompts
from dpo_cli.errors import DpoError

USER = {"role": "user", "content": "why?"}
ANSWER = {"role": "assistant", "content": "so"}
SYSTEM = {"role": "system", "content": "be brief"}


def rows(tmp_path: Path, *content: object) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in content))
    return path


def test_a_prompt_a_line(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes("\ufeff你好\r\n\n  {why}?\u2028here \n".encode())
    read = [(prompt.line, list(prompt.messages)) for prompt in read_prompts(path)]
    assert read == [
        (1, [{"role": "user", "content": "你好"}]),
        (3, [{"role": "user", "content": "{why}?\u2028here"}]),
    ]


def test_rows(tmp_path: Path) -> None:
    path = rows(
        tmp_path,
        {"prompt": "why?"},
        {"prompt": [SYSTEM, USER, ANSWER, USER], "id": 7},
        {"prompt": "why?", "chosen": "so", "rejected": "no"},
        {"chosen": [USER, ANSWER, USER, ANSWER], "rejected": [USER, ANSWER]},
    )
    assert [list(prompt.messages) for prompt in read_prompts(path)] == [
        [USER],
        [SYSTEM, USER, ANSWER, USER],
        [USER],
        [USER, ANSWER, USER],
    ]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ([], "expected a JSON object"),
        ({"text": "why?"}, "no 'prompt' among text, and not a pair"),
        ({}, "no 'prompt' among no columns, and not a pair"),
        ({"prompt": "  "}, "'prompt' must be a non-empty text or a list of messages"),
        ({"prompt": []}, "'prompt' must be a non-empty text or a list of messages"),
        ({"prompt": [USER, ANSWER]}, "the last message is an answer"),
        ({"prompt": ["why?"]}, "'prompt', message 1: expected an object, got a text"),
        (
            {"prompt": [{"role": "me", "content": ""}]},
            "'prompt', message 1: role 'me' is not",
        ),
        ({"chosen": [USER], "rejected": [USER]}, "'chosen' has no assistant message"),
        ({"chosen": [ANSWER], "rejected": [ANSWER]}, "'prompt' must be a non-empty text"),
    ],
)
def test_rows_without_a_prompt(tmp_path: Path, row: object, said: str) -> None:
    with pytest.raises(DpoError, match="1 of 2 lines have no prompt") as raised:
        read_prompts(rows(tmp_path, {"prompt": "why?"}, row))
    [detail] = raised.value.details
    assert detail.startswith(f"line 2: {said}")


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b'{"prompt": ', "not JSON: Expecting value (column 12)"),
        (b"[" * 100_000, "JSON nested too deeply"),
        (b'{"prompt": "\xff"}', "not UTF-8 (byte 13 of the line)"),
        (rb'{"prompt": "\ud800"}', "an unpaired surrogate"),
    ],
)
def test_lines_that_are_no_rows(tmp_path: Path, raw: bytes, said: str) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(raw)
    with pytest.raises(DpoError) as raised:
        read_prompts(path)
    assert said in raised.value.details[0]


def test_files_without_prompts(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    with pytest.raises(DpoError, match="No such file"):
        read_prompts(path)
    path.write_text(" \n\n")
    with pytest.raises(DpoError, match="the file has no prompt"):
        read_prompts(path)
    path.write_bytes(b"\xff\n" * 12)
    with pytest.raises(DpoError, match="12 of 12 lines have no prompt") as raised:
        read_prompts(path)
    assert raised.value.details[-1] == "and 2 more"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", json.dumps([{"prompt": "why?"}, {"prompt": "how?"}])),
        ("a.json", json.dumps([{"prompt": "why?"}, {"prompt": "how?"}], indent=1)),
        ("a.json", json.dumps(["why?", "how?"])),
        ("a.json", '{"prompt": "why?"}\n{"prompt": "how?"}\n'),
        ("a.txt", json.dumps([{"prompt": "why?"}, {"prompt": "how?"}])),
        ("a.txt", '{"prompt": "why?"}\n{"messages": [{"role": "user", "content": "how?"}]}\n'),
        ("a.txt", "why?\nhow?\n"),
        ("a.csv", "id,prompt\n1,why?\n2,how?\n"),
        ("a.ndjson", '{"instruction": "why?", "input": ""}\n{"instruction": "how?"}\n'),
    ],
)
def test_each_prompt_of_a_file_is_asked(tmp_path: Path, name: str, content: str) -> None:
    path = tmp_path / name
    path.write_text(content)
    asked = [list(prompt.messages) for prompt in read_prompts(path)]
    assert asked == [[USER], [{"role": "user", "content": "how?"}]]


def test_json_that_is_no_row_is_a_question(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text('{"a": 1} what is wrong?\n{"b": 2}\n')
    asked = [prompt.messages[0]["content"] for prompt in read_prompts(path)]
    assert asked == ['{"a": 1} what is wrong?', '{"b": 2}']


def test_prompts_in_a_json_array(shared: Path) -> None:
    prompts = read_prompts(shared / "cases/44-prompts-for-chat/array.json")
    assert [prompt.messages[0]["content"] for prompt in prompts] == [
        "Why is the sky blue?",
        "How do I boil an egg?",
        "Name a prime above ten.",
    ]


def test_a_system_column_begins_a_prompt(tmp_path: Path) -> None:
    path = rows(tmp_path, {"prompt": "why?", "system": "be brief"})
    assert list(read_prompts(path)[0].messages) == [SYSTEM, USER]
