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
def test_rows_that_are_none(tmp_path: Path, row: object, said: str) -> None:
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
