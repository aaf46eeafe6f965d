"""Prompts from a file, and every line that is none."""

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
        ([], "a JSON object was expected"),
        ({"text": "why?"}, "no 'prompt' among text, and no pair"),
        ({}, "no 'prompt' among no columns, and no pair"),
        ({"prompt": "  "}, "'prompt' must be a text that is not empty, or a list of messages"),
        ({"prompt": []}, "'prompt' must be a text that is not empty, or a list of messages"),
        ({"prompt": [USER, ANSWER]}, "the last message is an answer"),
        ({"prompt": ["why?"]}, "message 1 has no 'content' that is a text"),
        ({"prompt": [{"role": "me", "content": ""}]}, "message 1 has none of the roles system"),
        ({"chosen": [USER], "rejected": [USER]}, "'chosen' holds no assistant's answer"),
        ({"chosen": [ANSWER], "rejected": [ANSWER]}, "'prompt' must be a text"),
    ],
)
def test_rows_that_are_none(tmp_path: Path, row: object, said: str) -> None:
    with pytest.raises(DpoError, match="1 of 2 lines hold no prompt") as raised:
        read_prompts(rows(tmp_path, {"prompt": "why?"}, row))
    [detail] = raised.value.details
    assert detail.startswith(f"line 2: {said}")


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b'{"prompt": ', "not JSON: Expecting value (column 12)"),
        (b"[" * 100_000, "not JSON that can be read"),
        (b'{"prompt": "\xff"}', "not UTF-8 (byte 13 of the line)"),
        (rb'{"prompt": "\ud800"}', "half a surrogate pair"),
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
    with pytest.raises(DpoError, match="the file holds no prompt"):
        read_prompts(path)
    path.write_bytes(b"\xff\n" * 12)
    with pytest.raises(DpoError, match="12 of 12 lines hold no prompt") as raised:
        read_prompts(path)
    assert raised.value.details[-1] == "and 2 more"
