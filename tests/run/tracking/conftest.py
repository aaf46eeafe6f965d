from __future__ import annotations

from pathlib import Path

import pytest

from dpo_cli.run.directory import RunDirectory
from tests.support.tracking_streams import new_run


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return new_run(tmp_path)
