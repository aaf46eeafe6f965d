"""Tests that a folder of files in other formats trains like MiniMind's own file."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from tests.support import ranks, workers
from tests.support.cli import Run, dpo
from tests.support.small_runs import small_run
from tests.support.written import conversational, csv_file, json_array, sharegpt


@pytest.fixture(scope="module")
def held_out(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("held-out") / "pairs.csv"
    lines = (shared / "golden/data/tok24.jsonl").read_text().splitlines()
    path.write_bytes(csv_file([json.loads(line) for line in lines]))
    return path


@pytest.fixture(scope="module")
def shards(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return 27 pairs in two files without a telling name."""
    folder = tmp_path_factory.mktemp("shards")
    lines = (shared / "golden/data/train27.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    (folder / "1.csv").write_bytes(csv_file([conversational(row) for row in rows[:10]]))
    content = json_array([sharegpt(row) for row in rows[10:]])
    (folder / "2.json.gz").write_bytes(gzip.compress(content))
    return folder


@pytest.mark.parametrize("size", [1, 2])
def test_the_same_losses_bit_for_bit(
    shared: Path, shards: Path, held_out: Path, tmp_path: Path, size: int
) -> None:
    """The losses are also equal if two ranks share the reading."""
    runs = []
    own = shared / "golden/data/train27.jsonl", shared / "golden/data/tok24.jsonl"
    for name, (path, other) in {"own": own, "other": (shards, held_out)}.items():
        keys = {"data.data_path": path, "eval.path": other, "eval.interval": 4}
        # By default other formats score the last answer only, and shorten the prompt.
        keys |= {"data.scored_turns": "all", "data.truncation": "end"}
        run = workers.new_run(tmp_path / name, small_run(shared, **keys))
        assert ranks.work(run, size) == [0] * size
        runs.append(Run(run))
    assert runs[0].losses == runs[1].losses
    assert runs[0].evaluations == runs[1].evaluations
    assert len(runs[0].losses) == 7
    assert runs[0].evaluations


def test_unknown_columns_are_named(shared: Path, tmp_path: Path) -> None:
    (tmp_path / "pairs.csv").write_text("question,good,bad\na,b,c\n")
    result = dpo(*small_run(shared, **{"data.data_path": "pairs.csv"}), cwd=tmp_path)
    assert result.returncode == 1
    assert "the columns match no known format: 'question', 'good', 'bad'" in result.stderr
    assert "data.columns" in result.stderr
    assert "Traceback" not in result.stderr
