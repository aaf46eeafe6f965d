from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.hub import Hub, running, use_here
from tests.support.written import Row, rows_of_every_format


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Stand-in of the Hub for this process, with a cache in `tmp_path / "home"`."""
    with running() as server:
        use_here(monkeypatch, server.url, tmp_path / "home")
        yield server


@pytest.fixture(scope="session")
def rows(shared: Path) -> list[Row]:
    return rows_of_every_format(shared, 24)
