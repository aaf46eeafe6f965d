"""Tests of the metrics of each held-out pair, as they are stored beside an evaluation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dpo_cli.paired import ModelScores
from dpo_cli.run.held_out_scores import read_scores, write_scores

SCORES = ModelScores(
    {"loss": [0.69314718056, 0.5, 1e-9], "rewards/accuracies": [0.5, 1.0, 0.0]}, [0, 0, 1]
)


def test_written_scores_are_read_back(tmp_path: Path) -> None:
    directory = tmp_path / "held_out"
    write_scores(directory, 12, SCORES)
    write_scores(directory, 12, SCORES)  # a step that a resume repeats
    found = read_scores(directory, 12)
    assert found is not None
    assert found.prompts == [0, 0, 1]
    assert found.metrics["rewards/accuracies"] == [0.5, 1.0, 0.0]
    assert found.metrics["loss"] == pytest.approx(SCORES.metrics["loss"], rel=1e-6)
    assert [path.name for path in directory.iterdir()] == ["step-00000012.json"]
    assert read_scores(directory, 13) is None
    assert found.clusters == [0, 0, 1]
    assert ModelScores({}, [0, 1, 2]).clusters is None


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        json.dumps({"prompts": [0], "metrics": {"loss": [1, 2]}}),
        json.dumps({"prompts": [], "metrics": {}}),
        json.dumps({"prompts": ["x"], "metrics": {}}),
        json.dumps({"prompts": [0], "metrics": [1]}),
    ],
)
def test_damaged_scores_are_missing_scores(tmp_path: Path, content: str) -> None:
    (tmp_path / "step-00000001.json").write_text(content)
    assert read_scores(tmp_path, 1) is None
