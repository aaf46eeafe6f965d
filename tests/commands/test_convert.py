"""Tests of `dpo convert`: output and errors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.hub import running, use_here
from tests.support.written import csv_file, jsonl

Cli = Callable[..., tuple[int, str, str]]
PAIR = {"prompt": "Why?", "chosen": "So.", "rejected": "No."}


@pytest.fixture(autouse=True)
def folder(root: Path) -> None:
    Path("pairs.jsonl").write_bytes(
        jsonl([PAIR, {**PAIR, "chosen": 3, "id": 1}, {**PAIR, "id": 2}])
    )
    Path("$x.csv").write_bytes(csv_file([{"problem": "Why?", "chosen": "So.", "rejected": "No."}]))


def test_written_and_skipped_rows_are_counted(dpo: Cli) -> None:
    assert dpo("convert", "pairs.jsonl", "--to", "to.jsonl", "--format", "minimind") == (
        0,
        "wrote to.jsonl: 2 pairs in the format minimind, read as plain (TRL's standard, explicit"
        " prompt), JSONL\n"
        "skipped 1 row (1 malformed); the reasons are in to.jsonl.skipped\n"
        "columns not written: 'id' (1 row)\n"
        'to train as on the original rows: data.scored_turns = "last", data.truncation ='
        ' "prompt_start"\n',
        "",
    )
    assert len(Path("to.jsonl").read_text().splitlines()) == 2
    assert json.loads(Path("to.jsonl.skipped").read_text())["line"] == 2


def test_several_sources_and_columns_of_other_names(dpo: Cli) -> None:
    columns = 'data.columns={ prompt = "problem" }'
    code, out, err = dpo("convert", "$x.csv", "--to", "to.jsonl", "--set", columns)
    assert (code, err) == (0, "")
    assert out.startswith("wrote to.jsonl: 1 pair in the format trl, read as plain")
    Path("more").mkdir()
    Path("more/a.jsonl").write_bytes(jsonl([PAIR] * 2))
    code, out, _ = dpo("convert", "to.jsonl", "more", "--to", "all.jsonl")
    assert code == 0
    assert out.startswith("wrote all.jsonl: 3 pairs in the format trl, read as conversational")


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("pairs.jsonl", "--to", "pairs.jsonl", "--force"), "would be a part of the data"),
        (("none.jsonl", "--to", "to.jsonl"), "none.jsonl does not exist"),
        (("pairs.jsonl", "--to", "to.csv"), "the file is JSONL"),
        (("$x.csv", "--to", "to.jsonl"), "the columns match no known format"),
        (
            ("pairs.jsonl", "--to", "to.jsonl", "--set", "train.epochs=3"),
            "not used in a conversion",
        ),
        (("pairs.jsonl", "--to", "to.jsonl", "--set", "data.format=x"), "data.format"),
        (("hf:them/none", "--to", "to.jsonl"), "them/none does not exist on the Hub"),
        (("hf:them/gated", "--to", "to.jsonl"), "log in: hf auth login"),
        (("hf:a/b/c", "pairs.jsonl", "--to", "to.jsonl"), "is not a data set name on the Hub"),
    ],
)
def test_unusable_inputs_are_refused(
    dpo: Cli, words: tuple[str, ...], reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running() as hub:
        hub.push("them/gated", {"README.md": b"# Set", "train.jsonl": jsonl([PAIR])})
        hub.repositories["datasets", "them/gated"].is_gated = True
        use_here(monkeypatch, hub.url, tmp_path / "home")
        code, out, err = dpo("convert", *words)
    assert code in (1, 2)
    assert out == ""
    assert reason in err
    assert err.startswith("error: ")
    assert len(err.splitlines()) <= 3
    assert not list(tmp_path.glob("*to.jsonl*"))
