"""Tests of `dpo init` with data and models of the Hub: values from the first rows, short errors."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from dpo_cli import app
from dpo_cli.profile.hub import fetch
from dpo_cli.profile.load import load_profile
from dpo_cli.profile.schema import Profile
from tests.support.hub import Hub, use_here
from tests.support.hub_shapes import SHAPES, ultrafeedback_binarized
from tests.support.written import Row, jsonl

MODEL = ("--model", "hf:jingyaogong/MiniMind2-Small")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def init(capsys: pytest.CaptureFixture[str]) -> Any:
    def run(*words: str) -> tuple[int, list[str], list[str]]:
        code = app.main(["init", "my", *words])
        shown = capsys.readouterr()
        # The server in this process and huggingface_hub log there, too.
        ours = ("error: ", "help: ")
        errors = [line for line in shown.err.splitlines() if line.startswith(ours)]
        return code, shown.out.splitlines(), errors

    return run


def written() -> Profile:
    return load_profile(Path("profiles/my.toml")).profile


def test_the_first_rows_fill_in_the_profile(hub: Hub, rows: list[Row], init: Any) -> None:
    pytest.importorskip("pyarrow")
    commit = hub.push("them/set", ultrafeedback_binarized(rows))
    code, out, err = init("--data", "hf:them/set", *MODEL)
    assert (code, err) == (0, [])
    assert out == [
        "model: hf:jingyaogong/MiniMind2-Small",
        "data: hf:them/set",
        "  24 rows, read as UltraFeedback-binarized, Parquet; split train_prefs of default,"
        f" commit {commit[:8]}",
        "wrote profiles/my.toml (template hf)",
        "few pairs: 8 held-out pairs distinguish an accuracy of 0.88 or more from chance; anything"
        " less may be chance (95 %).",
        "next: dpo check profiles/my.toml",
    ]
    # Only the first file of this split was downloaded, and no file of the model.
    assert hub.bodies == ["README.md", "data/train_prefs-00000-of-00002.parquet"]
    profile = written()
    assert profile.model.weights == MODEL[1]
    assert str(profile.data.data_path) == "hf:them/set"
    assert profile.data.format == "ultrafeedback"
    assert profile.data.max_seq_len in (1024, 2048)  # real answers
    assert profile.train.learning_rate == 5e-6  # a known model of 26M weights
    text = Path("profiles/my.toml").read_text()
    assert "#   24 rows\n#   less 8 held out" in text
    assert "# First 12 pairs: median " in text


@pytest.mark.parametrize("shape", SHAPES)
def test_each_shape_is_recognized(shape: str, hub: Hub, rows: list[Row], init: Any) -> None:
    pytest.importorskip("pyarrow")
    make, name, format = SHAPES[shape]
    hub.push("them/set", make(rows))
    code, _, err = init("--data", name, *MODEL)
    assert (code, err) == (0, [])
    assert (str(written().data.data_path), written().data.format) == (name, format)


def test_estimated_numbers_say_so(hub: Hub, rows: list[Row], init: Any) -> None:
    hub.push("them/set", {f"train/{n}.jsonl": jsonl(rows[:6]) for n in range(4)})
    _, out, _ = init("--data", "hf:them/set", *MODEL)
    assert any(line.startswith("  about 24 rows, read as ") for line in out)
    assert "#   24 rows (estimated from the sizes" in Path("profiles/my.toml").read_text()


def test_columns_can_be_named(hub: Hub, init: Any) -> None:
    row = {"ask": "p", "best": "c", "worst": "r"}
    hub.push("them/set", {"train.jsonl": jsonl([row] * 40)})
    code, _, err = init("--data", "hf:them/set", *MODEL)
    assert code == 1
    assert "the columns match no known format: 'ask', 'best', 'worst'" in err[0]
    assert "help: Name the columns: --columns prompt=COLUMN,chosen=COLUMN,rejected=COLUMN" in err[1]
    assert not Path("profiles").exists()
    columns = "prompt=ask,chosen=best,rejected=worst"
    code, _, err = init("--data", "hf:them/set", "--columns", columns, *MODEL)
    assert (code, err) == (0, [])
    assert written().data.columns == {"prompt": "ask", "chosen": "best", "rejected": "worst"}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hf:them/none", "them/none does not exist on the Hub, or is private"),
        ("hf:them/gated", "them/gated is a gated data set"),
        ("hf:them/set:", "'hf:them/set:' is not a data set name on the Hub"),
    ],
)
def test_errors_are_two_lines(hub: Hub, init: Any, name: str, message: str) -> None:
    hub.push("them/gated", {"train.jsonl": b"{}"})
    hub.repositories["datasets", "them/gated"].is_gated = True
    code, _, err = init("--data", name, *MODEL)
    assert code == 1
    assert len(err) == 2
    assert message in err[0]
    assert not Path("profiles").exists()


def test_without_a_network_the_cache_is_enough(
    hub: Hub, rows: list[Row], init: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pyarrow")
    hub.push("them/set", ultrafeedback_binarized(rows))
    words = ("--data", "hf:them/set", *MODEL, "--force")
    assert init(*words)[0] == 0
    profile = written()
    use_here(monkeypatch, "http://127.0.0.1:1", tmp_path / "home", offline=True)
    assert init(*words)[0] == 0
    assert written() == profile
    use_here(monkeypatch, "http://127.0.0.1:1", tmp_path / "other", offline=True)
    code, _, err = init(*words)
    assert (code, len(err)) == (1, 2)
    assert "them/set is not, or only partly, in this machine's cache" in err[0]


def test_a_download_is_made_only_when_asked_for(
    hub: Hub, shared: Path, rows: list[Row], init: Any
) -> None:
    pytest.importorskip("pyarrow")
    model = shared / "cases/models/llama3"
    hub.push("me/base", {p.name: p.read_bytes() for p in model.iterdir()}, kind="models")
    hub.push("them/set", ultrafeedback_binarized(rows))
    fetch.cache_clear()
    words = ("--data", "hf:them/set", "--model", "hf:me/base", "--force")
    assert init(*words)[0] == 0
    assert written().data.max_seq_len > 512
    assert "model.safetensors" not in hub.bodies
    code, _, err = init(*words, "--download")
    assert (code, err) == (0, [])
    assert "model.safetensors" in hub.bodies
    assert "data/train_prefs-00001-of-00002.parquet" in hub.bodies
    profile = written()
    assert profile.model.weights == "hf:me/base"
    assert profile.data.max_seq_len == 512
    assert "# This model has 512 positions." in Path("profiles/my.toml").read_text()
    assert init(*words)[0] == 0  # the cache has the model now
    assert written() == profile


def test_questions_are_repeated_until_the_data_set_exists(
    hub: Hub, rows: list[Row], init: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.push("them/set", {"train.jsonl": jsonl(rows)})
    waiting = iter(["hf:them/none", "hf:them/set"])
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("typer.prompt", lambda text, **_: next(waiting))
    code, out, _ = init("--no-download", *MODEL)
    assert code == 0
    assert any(line.startswith("  them/none does not exist on the Hub") for line in out)
    assert str(written().data.data_path) == "hf:them/set"
