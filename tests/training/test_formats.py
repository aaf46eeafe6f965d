"""A run over a folder of files of other formats is the run over MiniMind's own file."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from tests.cli import Run, dpo
from tests.data.written import conversational, csv_file, json_array, sharegpt
from tests.small_runs import small_run


@pytest.fixture(scope="module")
def shards(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """27 pairs in two files; what they are, only their content says."""
    folder = tmp_path_factory.mktemp("shards")
    lines = (shared / "golden/data/train27.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    (folder / "1.csv").write_bytes(csv_file([conversational(row) for row in rows[:10]]))
    content = json_array([sharegpt(row) for row in rows[10:]])
    (folder / "2.json.gz").write_bytes(gzip.compress(content))
    return folder


def test_the_same_losses_bit_for_bit(shared: Path, shards: Path, tmp_path: Path) -> None:
    losses = []
    for name, path in (("own", shared / "golden/data/train27.jsonl"), ("other", shards)):
        (tmp_path / name).mkdir()
        result = dpo(*small_run(shared, **{"data.data_path": path}), cwd=tmp_path / name)
        assert result.returncode == 0, result.stderr
        losses.append(Run.only(tmp_path / name).losses)
    assert losses[0] == losses[1]
    assert len(losses[0]) == 7


def test_columns_that_nobody_knows_are_named(shared: Path, tmp_path: Path) -> None:
    (tmp_path / "pairs.csv").write_text("question,good,bad\na,b,c\n")
    result = dpo(*small_run(shared, **{"data.data_path": "pairs.csv"}), cwd=tmp_path)
    assert result.returncode == 1
    assert "the columns are those of no known format: 'question', 'good', 'bad'" in result.stderr
    assert "data.columns" in result.stderr
    assert "Traceback" not in result.stderr
