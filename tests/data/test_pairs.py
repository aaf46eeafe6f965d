from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dpo_cli.data.pairs import (
    PreferencePair,
    SkippedRow,
    read_pairs,
    refuse_if_mostly_malformed,
)
from dpo_cli.data.places import Places
from dpo_cli.errors import DpoError
from tests.support.written import parse_row

QUESTION = {"role": "user", "content": "Why?"}


def row(chosen: Any = "Because.", rejected: Any = "No.") -> dict[str, Any]:
    def side(answer: Any) -> Any:
        return [QUESTION, {"role": "assistant", "content": answer}]

    return {"chosen": side(chosen), "rejected": side(rejected)}


def write(path: Path, *rows: Any, bom: bool = False) -> Path:
    lines = [r if isinstance(r, str) else json.dumps(r, ensure_ascii=False) for r in rows]
    path.write_bytes((b"\xef\xbb\xbf" if bom else b"") + "\n".join(lines).encode())
    return path


def test_rows_come_in_order_with_their_lines(tmp_path: Path) -> None:
    path = write(tmp_path / "pairs.jsonl", row("a"), "", row("b"), "   ")
    pairs = [pair for pair in read_pairs(path) if isinstance(pair, PreferencePair)]
    assert [pair.line for pair in pairs] == [1, 3]
    assert [pair.chosen[1]["content"] for pair in pairs] == ["a", "b"]


def test_a_byte_order_mark_is_accepted(tmp_path: Path) -> None:
    path = write(tmp_path / "pairs.jsonl", row(), bom=True)
    assert isinstance(next(read_pairs(path)), PreferencePair)


def test_only_a_newline_ends_a_line(tmp_path: Path) -> None:
    """U+2028 and U+0085 are text; `str.splitlines` would break the row in two."""
    path = write(tmp_path / "pairs.jsonl", row("one\u2028two\u0085three"), row())
    first, second = read_pairs(path)
    assert isinstance(first, PreferencePair)
    assert first.chosen[1]["content"] == "one\u2028two\u0085three"
    assert isinstance(second, PreferencePair)


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        ('{"chosen": [', "not JSON: Expecting value (column 13)"),
        ("[1, 2]", "expected a JSON object, got a list"),
        ("null", "expected a JSON object, got null"),
        (json.dumps({"chosen": row()["chosen"]}), "no 'rejected'"),
        (json.dumps({"rejected": row()["chosen"]}), "no 'chosen'"),
        (
            json.dumps(row() | {"chosen": []}),
            "'chosen' is an empty list, expected a list of messages",
        ),
        (json.dumps(row() | {"chosen": "text"}), "'chosen' is a text, expected a list of messages"),
        (json.dumps(row() | {"rejected": [QUESTION]}), "'rejected' has no assistant message"),
        (json.dumps(row() | {"rejected": ["a"]}), "'rejected', message 1: expected an object"),
        (json.dumps(row(chosen=None)), "'chosen', message 2: 'content' is null, expected a text"),
        (json.dumps(row(chosen=7)), "message 2: 'content' is a number (7), expected a text"),
        (
            json.dumps({"chosen": [{"role": "alien", "content": "x"}], "rejected": []}),
            "role 'alien' is not one of system, user, assistant, tool",
        ),
        (json.dumps(row(chosen="\ud800")), "an unpaired surrogate"),
        ("[" * 100_000, "nested too deeply"),
        ('{"chosen": ' + "9" * 5000 + "}", "unreadable JSON"),
    ],
)
def test_malformed_rows_have_a_reason(raw: str, reason: str) -> None:
    found = parse_row(17, raw.encode())
    assert isinstance(found, SkippedRow)
    assert (found.line, found.problem) == (17, "malformed")
    assert reason in found.reason


def test_a_row_that_is_not_utf8_is_malformed() -> None:
    found = parse_row(3, '{"chosen": "é"}'.encode("latin-1"))
    assert isinstance(found, SkippedRow)
    assert "not UTF-8 (byte 13" in found.reason


def test_a_skipped_row_is_read_back() -> None:
    aside = SkippedRow(5, "truncated", "no response token of 'chosen' left")
    assert json.loads(aside.to_json(Places())) == {
        "line": 5,
        "problem": "truncated",
        "reason": "no response token of 'chosen' left",
    }


def test_up_to_one_percent_may_be_malformed() -> None:
    one = [SkippedRow(7, "malformed", "no 'rejected'")]
    refuse_if_mostly_malformed(Path("pairs.jsonl"), one, rows=100)
    with pytest.raises(DpoError, match="1 of 99 rows are malformed") as caught:
        refuse_if_mostly_malformed(Path("pairs.jsonl"), one, rows=99)
    assert caught.value.details == ("line 7: no 'rejected'",)
    assert caught.value.remedy


def test_rows_that_are_too_long_never_refuse_a_file() -> None:
    many = [SkippedRow(line, "truncated", "too long") for line in range(90)]
    refuse_if_mostly_malformed(Path("pairs.jsonl"), many, rows=100)


@pytest.mark.parametrize("content", [b"", b"\n\n  \n"])
def test_a_file_without_rows_is_an_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(content)
    with pytest.raises(DpoError, match="has no rows"):
        list(read_pairs(path))


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DpoError, match="No such file"):
        list(read_pairs(tmp_path / "nowhere.jsonl"))


def test_an_empty_directory_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DpoError, match="has no file of pairs"):
        list(read_pairs(tmp_path))
