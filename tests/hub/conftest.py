from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.hub import Hub, running, use_here
from tests.support.written import Row


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Stand-in of the Hub, which this process uses with a cache in `tmp_path / "home"`."""
    with running() as server:
        use_here(monkeypatch, server.url, tmp_path / "home")
        yield server


@pytest.fixture(scope="session")
def rows(shared: Path) -> list[Row]:
    """Real pairs with one question, which every format can hold."""
    lines = (shared / "data/dpo_en_zh_400.jsonl").read_text().splitlines()

    def is_fit(row: Row) -> bool:
        sides = row["chosen"], row["rejected"]
        texts = [turn["content"] for side in sides for turn in side]
        are_plain = all(text == text.strip() != "" and "\n\nHuman" not in text for text in texts)
        return [len(side) for side in sides] == [2, 2] and are_plain

    return [row for row in map(json.loads, lines) if is_fit(row)][:24]
