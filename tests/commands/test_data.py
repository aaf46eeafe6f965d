"""`dpo data`: the pairs one after another, on a pipe and in a pager."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from dpo_cli import app
from tests.cli import run_in

REPOSITORY = Path(__file__).resolve().parents[2]
PROFILE = f"""\
[model]
checkpoint = "./nothing.pth"
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
    """Run `dpo data my.toml` in this process: exit code, standard output, standard error."""

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
        "4 of 6 rows are kept; 2 set aside",
        "tokens that carry loss are in ⟦brackets⟧, ↵ is a newline",
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
def test_some_of_them(data: Cli, arguments: list[str], shown: list[str]) -> None:
    code, out, _ = data(*arguments)
    assert code == 0
    found = headings(out)
    assert len(found) == len(shown)
    assert all(line.startswith(start) for line, start in zip(found, shown, strict=True))


def test_rows_that_are_set_aside(data: Cli) -> None:
    code, out, _ = data("--rejected")
    assert code == 0
    assert [line.split(" (")[0] for line in headings(out)] == [
        "line 2 · malformed: not JSON: Expecting property name enclosed in double quotes",
        "line 5 · identical: both sides are the same",
    ]
    assert "  {broken" in out
    assert headings(data("--rejected", "--line", "5")[1]) == [
        "line 5 · identical: both sides are the same"
    ]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--line", "2"], "line 2: not JSON"),
        (["--line", "99"], "line 99: no such row"),
        (["--rejected", "--line", "1"], "line 1: this row is not set aside"),
        (["--rejected", "--only", "repeated"], "--only"),
        (["--only", "beautiful"], "beautiful"),
        (["--set", "data.data_path=nowhere.jsonl"], "nowhere.jsonl does not exist"),
        (["--set", "model.tokenizer=nowhere"], "nowhere does not exist"),
    ],
)
def test_what_cannot_be_shown_exits_2(data: Cli, arguments: list[str], words: str) -> None:
    code, out, err = data(*arguments)
    assert (code, out) == (2, "")
    assert words in err


def test_a_reader_that_leaves_early_is_no_error(folder: Path) -> None:
    (folder / "pairs.jsonl").write_text("".join(ROWS) * 300)
    words = f"{sys.executable} -m dpo_cli data my.toml | head -1; exit ${{PIPESTATUS[0]}}"
    done = run_in(folder, ["bash", "-c", words])
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "1,200 of 1,800 rows are kept; 600 set aside\n"
