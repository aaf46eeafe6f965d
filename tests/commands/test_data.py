"""Tests of `dpo data`: pairs one after another, on a pipe and in a pager."""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from dpo_cli import app
from tests.support.cli import run_in

REPOSITORY = Path(__file__).resolve().parents[2]
PROFILE = f"""\
[model]
weights = "./nothing.pth"
tokenizer = "{REPOSITORY}/demo/tokenizer"
[data]
data_path = "pairs.jsonl"
max_seq_len = 60
"""

Cli = Callable[..., tuple[int, str, str]]


def row(question: str, chosen: str, rejected: str) -> str:
    def side(answer: str) -> list[dict[str, str]]:
        messages = [("user", question), ("assistant", answer)]
        return [{"role": role, "content": content} for role, content in messages]

    return json.dumps({"chosen": side(chosen), "rejected": side(rejected)}) + "\n"


ROWS = (
    row("How?", "So.", "No."),
    "{broken\n",
    row("Why?", "Because. " * 40, "No."),
    row("How?", "So.", "No."),
    row("Hm?", "Yes.", "Yes."),
    row("What?", "This, and nothing else.", "Never."),
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COLUMNS", raising=False)
    (tmp_path / "my.toml").write_text(PROFILE)
    (tmp_path / "pairs.jsonl").write_text("".join(ROWS))
    return tmp_path


@pytest.fixture
def data(folder: Path, capsys: pytest.CaptureFixture[str]) -> Cli:
    """Run `dpo data my.toml` in this process; return exit code, stdout and stderr."""

    def run(*arguments: str) -> tuple[int, str, str]:
        code = app.main(["data", "my.toml", *arguments])
        output = capsys.readouterr()
        return code, output.out, output.err

    return run


def headings(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("line ")]


def test_all_pairs_that_are_kept_without_any_weights(data: Cli) -> None:
    code, out, err = data()
    assert (code, err) == (0, "")
    assert out.splitlines()[:2] == [
        "4 of 6 rows kept, 2 skipped",
        "tokens with loss are in ⟦brackets⟧, ↵ is a newline",
    ]
    assert headings(out) == ["line 1", "line 3 · truncated", "line 4 · repeated (line 1)", "line 6"]
    assert "⟦This, and nothing else.<|im_end|>↵⟧" in out
    assert "\x1b" not in out


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["--line", "6"], ["line 6"]),
        (["--only", "truncated"], ["line 3 · truncated"]),
        (["--only", "truncated", "--only", "repeated"], ["line 3 · truncated", "line 4 · repeat"]),
        (["--only", "contradictory"], []),
        (["--set", "data.max_seq_len=900", "--only", "truncated"], []),
    ],
)
def test_selected_pairs(data: Cli, arguments: list[str], shown: list[str]) -> None:
    code, out, _ = data(*arguments)
    assert code == 0
    found = headings(out)
    assert len(found) == len(shown)
    assert all(line.startswith(start) for line, start in zip(found, shown, strict=True))


def test_columns_that_are_not_read_are_named(data: Cli, folder: Path) -> None:
    rows = [{"instruction": "do", "input": f"{n}", "chosen": "a", "rejected": "b"} for n in "12"]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, out, _ = data("--set", 'data.columns={prompt="instruction"}')
    assert code == 0
    assert out.splitlines()[:3] == [
        "2 of 2 rows kept, 0 skipped",
        "columns that are not read: 'input' (2 rows)",
        "If one belongs to the pairs, name it in data.columns (docs/data.md).",
    ]
    assert "not read" not in data()[1]  # the format alpaca reads both


def test_if_no_row_is_kept_the_reason_is_given(data: Cli, folder: Path) -> None:
    row = {"conversation": [{"role": "user", "content": "q"}], "chosen": "yes", "rejected": "no"}
    (folder / "pairs.jsonl").write_text(f"{json.dumps(row)}\n" * 3)
    code, out, _ = data()
    assert code == 0
    assert out.splitlines()[0] == "0 of 3 rows kept, 3 skipped"
    assert out.splitlines()[1].startswith("first skipped row: line 1: ")
    assert "its columns: 'conversation', 'chosen', 'rejected'\n" in out
    assert "data.columns" in out


def test_skipped_rows(data: Cli) -> None:
    code, out, _ = data("--skipped")
    assert code == 0
    assert [line.split(" (")[0] for line in headings(out)] == [
        "line 2 · malformed: not JSON: Expecting property name enclosed in double quotes",
        "line 5 · identical: both sides are the same",
    ]
    assert "  {broken" in out
    assert headings(data("--skipped", "--line", "5")[1]) == [
        "line 5 · identical: both sides are the same"
    ]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--line", "2"], "line 2: not JSON"),
        (["--line", "99"], "line 99: no such row"),
        (["--skipped", "--line", "1"], "line 1: this row is not skipped"),
        (["--skipped", "--only", "repeated"], "--only"),
        (["--only", "beautiful"], "beautiful"),
        (["--set", "data.data_path=nowhere.jsonl"], "nowhere.jsonl does not exist"),
        (["--set", "model.tokenizer=nowhere"], "nowhere does not exist"),
    ],
)
def test_rows_that_cannot_be_shown_exit_2(data: Cli, arguments: list[str], words: str) -> None:
    code, out, err = data(*arguments)
    assert (code, out) == (2, "")
    assert words in err


def test_a_reader_that_leaves_early_is_no_error(folder: Path) -> None:
    (folder / "pairs.jsonl").write_text("".join(ROWS) * 300)
    words = f"{sys.executable} -m dpo_cli data my.toml | head -1; exit ${{PIPESTATUS[0]}}"
    done = run_in(folder, ["bash", "-c", words])
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "1,200 of 1,800 rows kept, 600 skipped\n"


SHARDS = ("--set", "data.data_path=shards")


@pytest.fixture
def shards(folder: Path) -> Path:
    """Write two files of other formats: four pairs, a row of two cells, a line that is no JSON."""
    (folder / "shards").mkdir()
    csv = 'prompt,chosen,rejected\nHow?,"So,\nso.",No.\nonly,two\nWhy?,Because.,No.\n'
    (folder / "shards/a.csv").write_text(csv)
    plain = [
        {"prompt": "Hm?", "chosen": "Yes.", "rejected": "Never."},
        {"prompt": "Why?", "chosen": "Because.", "rejected": "No."},
    ]
    content = f"\n{json.dumps(plain[0])}\n{{broken\n{json.dumps(plain[1])}\n".encode()
    (folder / "shards/b.jsonl.gz").write_bytes(gzip.compress(content))
    return folder


def test_rows_of_several_files_are_named_by_file_and_line(data: Cli, shards: Path) -> None:
    code, out, err = data(*SHARDS)
    assert (code, err) == (0, "")
    assert out.startswith("4 of 6 rows kept, 2 skipped\n")
    assert [line for line in out.splitlines() if " of a.csv" in line or " of b.jsonl" in line] == [
        "row 1 of a.csv",
        "row 3 of a.csv",
        "line 2 of b.jsonl.gz",
        "line 4 of b.jsonl.gz · repeated (row 3 of a.csv)",
    ]
    code, out, err = data(*SHARDS, "--line", "b.jsonl.gz:2")
    assert (code, err) == (0, "")
    assert "line 2 of b.jsonl.gz\n" in out
    assert "⟦Yes.<|im_end|>↵⟧" in out
    assert data(*SHARDS, "--line", "5")[1] == out  # counted through all files


def test_skipped_rows_of_other_formats(data: Cli, shards: Path) -> None:
    code, out, err = data(*SHARDS, "--skipped")
    assert (code, err) == (0, "")
    assert "row 2 of a.csv · malformed: 2 cells, but the header has 3\n  only,two\n" in out
    assert "line 3 of b.jsonl.gz · malformed: not JSON: Expecting property name" in out
    assert "\n  {broken\n" in out
    pyarrow = pytest.importorskip("pyarrow")
    table = pyarrow.table({"prompt": ["a", "b"], "chosen": ["c", None], "rejected": ["d", "e"]})
    pytest.importorskip("pyarrow.parquet").write_table(table, shards / "pairs.parquet")
    out = data("--set", "data.data_path=pairs.parquet", "--skipped")[1]
    assert "row 2 · malformed: 'chosen' is null, expected a text" in out
    assert '{"prompt": "b", "chosen": null, "rejected": "e"}' in out


@pytest.mark.parametrize(
    ("stated", "words"),
    [
        ("c.csv:1", ("No file c.csv in the data.", "Files: a.csv, b.jsonl.gz.")),
        ("a.csv:9", ("No row a.csv:9.", "a.csv has 3 rows")),
        ("a.csv:2", ("shards, row 2 of a.csv: 2 cells, but", "--skipped")),
        ("a.csv", ("No row 'a.csv'.", "FILE:LINE")),
        ("99999999999", ("No row",)),
        ("0", ("No row",)),
    ],
)
def test_a_row_that_does_not_exist(
    data: Cli, shards: Path, stated: str, words: tuple[str, ...]
) -> None:
    code, out, err = data(*SHARDS, "--line", stated)
    assert (code, out) == (2, "")
    for each in words:
        assert each in err
