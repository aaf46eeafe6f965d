"""Tests of parsing `--grid`, of the points of a grid, and of errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dpo_cli.errors import UsageError
from dpo_cli.profile.grid import count_references, keys_changing_held_out, load_points, parse_grid


@pytest.fixture
def profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "mine.toml"
    path.write_text(
        '[model]\ntokenizer = "tokenizer"\n[data]\ndata_path = "pairs.jsonl"\n'
        "[eval]\nfraction = 0.1\n"
    )
    return path


@pytest.mark.parametrize(
    ("words", "grid"),
    [
        (["dpo.beta=[0.1, 2,5]"], {"dpo.beta": [0.1, 2, 5]}),
        (["a.b = [true]", "c.d=[1e-6]"], {"a.b": [True], "c.d": [1e-6]}),
        (["a.b=[minimind2,minimind3]"], {"a.b": ["minimind2", "minimind3"]}),
        (["a.b=[./x.pth, 3, false]"], {"a.b": ["./x.pth", 3, False]}),
        (['a.b=["x, y", ["sft", "ipo"]]'], {"a.b": ["x, y", ["sft", "ipo"]]}),
    ],
)
def test_parse_grid(words: list[str], grid: dict[str, list[Any]]) -> None:
    assert parse_grid(words) == grid


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["dpo.beta"], "needs a key and values in brackets"),
        (["dpo.beta=0.1,2"], "needs a key and values in brackets"),
        (["=[1]"], "needs a key and values in brackets"),
        (["dpo.beta=[]"], "--grid dpo.beta has no values"),
        (["dpo.beta=[1]", "dpo.beta=[2]"], "--grid dpo.beta is given twice"),
    ],
)
def test_parse_grid_errors(words: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_grid(words)


def test_every_combination_is_a_point(profile: Path) -> None:
    grid = {"dpo.beta": [0.1, 2], "train.schedule": ["minimind2", "minimind3"]}
    points = load_points(profile, ["train.epochs=1"], grid)
    assert [(p.letter, p.profile.dpo.beta, p.profile.train.schedule) for p in points] == [
        ("A", 0.1, "minimind2"),
        ("B", 0.1, "minimind3"),
        ("C", 2.0, "minimind2"),
        ("D", 2.0, "minimind3"),
    ]
    assert {p.profile.train.epochs for p in points} == {1}
    assert points[1].text == 'beta 0.1  schedule "minimind3"'
    assert points[1].loaded.origins["dpo.beta"] == "--grid"


def refused(profile: Path, grid: dict[str, list[Any]], *settings: str) -> UsageError:
    with pytest.raises(UsageError) as raised:
        load_points(profile, settings, grid)
    return raised.value


def test_problems_of_all_points_are_merged(profile: Path) -> None:
    error = refused(profile, {"train.learning_rat": [1, 2], "dpo.beta": [-1, 2, 0]})
    assert error.message == "mine.toml: 2 errors"
    unknown, wrong = error.details
    assert unknown.startswith("--grid  train.learning_rat = 1, 2: unknown key; did you mean train")
    assert wrong.startswith("--grid  dpo.beta = -1, 0: must be greater than 0; for example")


def test_a_contradiction_names_its_origin(profile: Path) -> None:
    error = refused(profile, {"dpo.loss": ["sigmoid", "ipo"]}, "dpo.reduction=sum")
    [detail] = error.details
    assert detail.startswith('--set  dpo.reduction = "sum": dpo.loss = "ipo" uses the mean over')


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ({"dpo.beta": [2]}, "the grid has one run only"),
        ({"dpo.beta": [2, 2.0]}, "beta 2 and beta 2.0 are the same run"),
        ({"dpo.beta": list(range(1, 28))}, "a sweep has at most 26 runs"),
        ({"train.epochs": [1, 2]}, "train.epochs is in --set and in --grid"),
    ],
)
def test_grid_errors(profile: Path, grid: dict[str, list[Any]], message: str) -> None:
    assert refused(profile, grid, "train.epochs=1").message == message


def test_count_references(profile: Path) -> None:
    def count(grid: dict[str, list[Any]], *settings: str) -> int:
        return count_references([point.profile for point in load_points(profile, settings, grid)])

    assert count({"dpo.beta": [0.1, 2], "train.learning_rate": [1e-6, 1e-5]}) == 1
    assert count({"dpo.beta": [0.1, 2], "train.batch_size": [2, 4]}) == 2
    assert count({"dpo.beta": [0.1, 2]}, "train.layout=padded") == 0
    assert count({"dpo.loss": ["orpo", "sigmoid"]}) == 1
    assert count({"dpo.beta": [0.1, 2]}, "dpo.loss=orpo") == 0


def test_keys_changing_held_out(profile: Path) -> None:
    def keys(key: str, *settings: str) -> list[str]:
        grid = {"dpo.beta": [0.1, 2], key: [5, 6]}
        return keys_changing_held_out(load_points(profile, settings, grid))

    own_file = ("eval.path=held_out.jsonl", "eval.fraction=0")
    assert keys("train.seed") == ["train.seed"]
    assert keys("train.seed", *own_file) == []
    assert keys("data.max_seq_len", *own_file) == ["data.max_seq_len"]
    assert keys("train.epochs") == []
