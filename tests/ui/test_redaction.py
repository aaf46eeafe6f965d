"""Tests of the removal of paths and names from texts."""

from __future__ import annotations

import pytest

from dpo_cli.ui.html.redaction import Redactor, file_names


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("lines 3, 7", "lines 3, 7"),
        ("line 7 of my part.jsonl: why", "line 7 of [redacted]: why"),
        ("line 7 of a.csv, row 3 of b.gz", "line 7 of [redacted], row 3 of [redacted]"),
        ("row 7 of a.csv and line 3 of b.gz", "row 7 of [redacted] and line 3 of [redacted]"),
        ("repeated (row 7 of a.csv)", "repeated (row 7 of [redacted])"),
    ],
)
def test_files_that_rows_are_named_by(text: str, left: str) -> None:
    assert Redactor(())(text) == left


def test_files_of_several_sources() -> None:
    values = [["/data/a.csv", "/data/folder"], "/data/b.csv", [1.0, 2.0], 3]
    assert list(file_names(values)) == ["a.csv", "b.csv"]
