"""Fault 23: bad rows of each kind among good ones. Bad rows are skipped and named."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dpo_cli.data.chat import ChatTokenizer
from dpo_cli.data.encoding import encode_pairs
from dpo_cli.data.pairs import read_pairs
from dpo_cli.data.places import Places
from tests.support.cli import Run, dpo
from tests.support.small_runs import small_run

ROWS = 10_000
MAX_SEQ_LEN = 64
REASON_CHARACTERS = 300
Row = dict[str, Any]


def message(role: Any, content: Any, **more: Any) -> Row:
    return {"role": role, "content": content, **more}


def sides(chosen: Any, rejected: Any, question: str = "Why?", **more: Any) -> Row:
    def side(answer: Any) -> list[Row]:
        return [message("user", question), message("assistant", answer)]

    return {"chosen": side(chosen), "rejected": side(rejected), **more}


def text(row: Any, ascii_only: bool = False) -> bytes:
    return json.dumps(row, ensure_ascii=ascii_only).encode()


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


def words(luck: random.Random) -> str:
    """Return a short answer in one of several alphabets."""
    alphabets = [
        "abcdefgh .,",
        "你好世界因为所以。",
        "éüß\u2028\u0085\t",
        "🙂👍🏽",
        "  \r\n",
        "0123456789+=",
    ]
    return "".join(luck.choice(luck.choice(alphabets)) for _ in range(luck.randrange(1, 20)))


def good_row(luck: random.Random) -> bytes:
    """Return a valid row with something unusual."""
    a, b = "A" + words(luck), "B" + words(luck)
    special = ["<|im_start|>assistant\n", "<|im_end|>", "<|endoftext|>", "<think>\n\n</think>\n\n"]
    row: Row = sides(a, b)
    match luck.randrange(9):
        case 0:
            row = sides(a + luck.choice(special), b, question=luck.choice(special) + "Why?")
        case 1:
            row = sides(a, b, prompt=None, score=float("nan"), weight=-0.0, tags=[[], {}])
        case 2:
            for side in ("chosen", "rejected"):
                row[side].insert(0, message("system", "Be brief."))
        case 3:
            row["chosen"][0]["name"] = {"first": [1, None, True]}
        case 4:
            row = sides(a + "\u0000" + b, b + "\x1b[31m")
        case 5:  # later ones count
            return b'{"chosen": 7, ' + text(row)[1:]
        case 6:
            return b"  " + text(row, ascii_only=True) + luck.choice([b"\r", b"\t ", b""])
        case 7:
            extra = nested(luck.randrange(1, 200))
            return text(row)[:-1] + b', "extra": ' + extra.encode() + b"}"
    return text(row)


def broken(luck: random.Random) -> bytes:
    """Return a line that is not JSON or not UTF-8."""
    row = text(sides(words(luck) + "x", words(luck) + "y"))
    match luck.randrange(10):
        case 0:
            return row[: luck.randrange(1, len(row))].replace(b"\n", b" ").rstrip() or b"{"
        case 1:
            return b"\xef\xbb\xbf" + row  # not at the start of the file
        case 2:
            return row.replace(b'"chosen"', b"'chosen'")
        case 3:
            return row + b"," + row
        case 4:
            return row.replace(b"Why", b"W\xffy")
        case 5:
            return row.replace(b"Why", "Why".encode("utf-16"))
        case 6:
            return row.replace(b"Why", b"W\x00y")
        case 7:
            return bytes(luck.randrange(1, 60))
        case 8:
            return row.replace(b"Why", b"\xed\xa0\x80")  # a surrogate in text that is not UTF-8
    return luck.randbytes(luck.randrange(20, 60)).replace(b"\n", b"x") + b"\xff"


def wrong(luck: random.Random) -> bytes:
    """Return a line that is JSON but no preference pair."""
    odd = [None, 7, -1e308, 1e999, True, "text", "", [], {}, [[]], [{}], [None], ["a"], {"a": 1}]
    value = luck.choice(odd)
    row = sides("yes", "no")
    match luck.randrange(13):
        case 0:
            return text(value)
        case 1:
            row[luck.choice(["chosen", "rejected"])] = value
        case 2:
            del row[luck.choice(["chosen", "rejected"])]
        case 3:
            no_text = luck.choice([v for v in odd if v != ["a"] and not isinstance(v, str)])
            row["rejected"][luck.randrange(2)]["content"] = no_text
        case 4:
            row["chosen"][luck.randrange(2)]["role"] = value
        case 5:
            role = luck.choice(["narrator", "Assistant 2", "assistant_", "1", "bot" * 100_000])
            row["chosen"][1]["role"] = role
        case 6:
            del row["chosen"][luck.randrange(2)][luck.choice(["role", "content"])]
        case 7:
            row["rejected"] = row["rejected"][:1]  # no answer
        case 8:
            row = sides("half \ud83d of a pair", "no")
            return text(row, ascii_only=True)
        case 9:  # a role, or a whole row, as deep as the parser allows, or deeper
            deep = nested(luck.randrange(300, 1200)).encode()
            return text(row).replace(b'"assistant"', deep, 1)
        case 10:
            return nested(luck.choice([400, 2_000, 50_000])).encode()
        case 11:
            return text(row).replace(b'"yes"', b"9" * luck.choice([400, 4_299, 10_000]))
        case 12:
            return b'{"messages": ' + text(row["chosen"]) + b"}"
    return text(row)


def useless(luck: random.Random) -> bytes:
    """Return a pair that cannot be learned: equal sides, or no response after truncation."""
    if luck.random() < 0.5:
        same = words(luck)
        return text(sides(same, same))
    return text(sides("yes", "no", question="Why? " * luck.choice([100, 300])))


KINDS: dict[str, Callable[[random.Random], bytes]] = {
    "good": good_row,
    "broken": broken,
    "wrong": wrong,
    "useless": useless,
    "blank": lambda luck: luck.choice([b"", b" ", b"\t", b"\r", b"  \r"]),
}


def planted(luck: random.Random, count: int, shares: list[float]) -> tuple[bytes, list[str]]:
    """Return the bytes of a file, and the kind of each line."""
    kinds = luck.choices(list(KINDS), shares, k=count)
    lines = [KINDS[kind](luck) for kind in kinds]
    assert not any(b"\n" in line for line in lines)
    return b"\n".join(lines), kinds


def lines_of(kinds: list[str], *which: str) -> list[int]:
    return [line for line, kind in enumerate(kinds, start=1) if kind in which]


def test_ten_thousand_rows(shared: Path, tmp_path: Path) -> None:
    content, kinds = planted(random.Random(23), ROWS, [0.25, 0.3, 0.3, 0.1, 0.05])
    # One line has ten million characters, and the last one has no newline.
    long = text(sides("x" * 10_000_000, "no"))[:-2]
    content = b"\xef\xbb\xbf" + content + b"\n" + long
    kinds.append("broken")
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(content)

    tokenizer = ChatTokenizer(shared / "tokenizer/minimind2")
    began = time.process_time()  # CPU time of this process, however busy the machine is
    kept, skipped_rows = encode_pairs(
        read_pairs(path), tokenizer, max_seq_len=MAX_SEQ_LEN, empty_think_ratio=0.2, seed=1
    )
    seconds = time.process_time() - began

    assert [pair.line for pair in kept] == lines_of(kinds, "good")
    assert [row.line for row in skipped_rows] == lines_of(kinds, "broken", "wrong", "useless")
    for row in skipped_rows:
        malformed = kinds[row.line - 1] in ("broken", "wrong")
        assert (row.problem == "malformed") == malformed, row
        assert 0 < len(row.reason) < REASON_CHARACTERS, row
        assert json.loads(row.to_json(Places()))["line"] == row.line
    assert seconds < 20


@pytest.mark.parametrize("depth", [100, 500, *range(900, 1010)])
def test_deeply_nested_rows_are_no_error(depth: int, tmp_path: Path) -> None:
    """Some rows can still be parsed, but are too deep to write or show."""
    path = tmp_path / "pairs.jsonl"
    row = text(sides("yes", "no"))
    deep = nested(depth).encode()
    path.write_bytes(
        b"\n".join(
            [
                row[:-1] + b', "extra": ' + deep + b"}",
                row[:-1].replace(b"yes", b"y\\u0065s") + b', "extra": ' + deep + b"}",
                row.replace(b'"assistant"', deep),
                row.replace(b'"yes"', deep),
                deep,
            ]
        )
    )
    rows = list(read_pairs(path))
    assert [row.line for row in rows] == [1, 2, 3, 4, 5]
    assert all(len(row.reason) < REASON_CHARACTERS for row in rows if hasattr(row, "reason"))


def test_dpo_train_names_the_skipped_rows(shared: Path, tmp_path: Path) -> None:
    """Less than one percent is malformed: the run continues without these rows and names them."""
    luck = random.Random(5)
    content, kinds = planted(luck, 400, [0.93, 0.004, 0.004, 0.05, 0.012])
    malformed = lines_of(kinds, "broken", "wrong")
    assert 2 <= len(malformed) <= 0.01 * (400 - len(lines_of(kinds, "blank")))
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(content)
    changes = {"data.data_path": path, "data.max_seq_len": MAX_SEQ_LEN, "train.batch_size": 64}
    result = dpo(*small_run(shared, **changes), cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    run = Run.only(tmp_path)
    rejected = [json.loads(row) for row in run.directory.skipped_rows_path.open()]
    assert [row["line"] for row in rejected] == lines_of(kinds, "broken", "wrong", "useless")
    assert [row["line"] for row in rejected if row["problem"] == "malformed"] == malformed
    assert all(row["reason"] for row in rejected)
    plan = run.directory.read_plan()
    assert plan is not None
    assert plan.pairs.kept == len(lines_of(kinds, "good"))
    assert sum(step.pairs for step in run.steps) == len(lines_of(kinds, "good"))
    assert (
        f"{len(rejected)} skipped rows: {run.directory.path.relative_to(tmp_path)}" in result.stdout
    )
