"""Tests of children whose parent is killed before they have done anything: all of them end.

`make storm` repeats this 50 times for each kind, at random moments.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from dpo_cli.run.events import EventReader, WorkerStarted
from tests.support.first_moments import KINDS, orphan
from tests.support.tracking_streams import new_run


@pytest.mark.parametrize("kind", KINDS)
def test_no_child_outlives_a_parent_that_dies_in_its_first_moments(
    tmp_path: Path, kind: str
) -> None:
    run = new_run(tmp_path, use_tensorboard=True)
    orphan(kind, run)
    events = list(EventReader(run.events_path).read_new())
    assert not any(isinstance(event, WorkerStarted) for event in events)
