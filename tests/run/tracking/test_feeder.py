"""Tests of the rows that trackers receive, and of trackers that fail."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest

from dpo_cli.run.directory import RunDirectory
from dpo_cli.run.tracking.feeder import Feeder
from dpo_cli.run.tracking.rows import Row
from dpo_cli.run.tracking.state import read_state
from dpo_cli.run.tracking.tracker import TrackedRun, config_of
from tests.support.made_events import saved
from tests.support.tracking_streams import (
    PLANNED,
    SECRET,
    evaluated,
    new_run,
    profile,
    resumed,
    sampled,
    step,
    steps,
    tell,
)


class Listener:
    """Tracker that records calls in a class attribute, which outlives it like real data."""

    can_go_back: ClassVar[bool] = False
    told: ClassVar[list[Any]]

    def __init__(self, run: TrackedRun, state: dict[str, Any]) -> None:
        self.subject = run
        state.setdefault("id", "first")

    def go_back(self, optimizer_step: int) -> None:
        self.told.append(f"back to {optimizer_step}")

    def log(self, row: Row) -> None:
        self.told.append(row)

    def flush(self) -> None:
        self.told.append("flush")

    def finish(self) -> None:
        self.told.append("finish")


@pytest.fixture
def listener() -> type[Listener]:
    class Its(Listener):
        told: ClassVar[list[Any]] = []

    return Its


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return new_run(tmp_path)


def feed(run: RunDirectory, kinds: dict[str, type[Listener]], **track: Any) -> Feeder:
    """Feed a run from start to end, once."""
    feeder = Feeder(run, profile(**track), kinds)
    feeder.feed(is_over=True)
    feeder.finish()
    return feeder


def logged(listener: type[Listener]) -> list[int]:
    return [row.optimizer_step for row in listener.told if isinstance(row, Row)]


def test_rows_come_once_as_they_are_closed(run: RunDirectory, listener: type[Listener]) -> None:
    feeder = Feeder(run, profile(), {"a": listener})
    feeder.feed(is_over=False)
    assert listener.told == []
    tell(run, PLANNED, *steps([1, 2]))
    feeder.feed(is_over=False)
    tell(run, step(3), saved(3))
    feeder.feed(is_over=False)
    assert logged(listener) == [1, 2]
    feeder.feed(is_over=True)
    feeder.finish()
    assert logged(listener) == [1, 2, 3]
    assert listener.told[-2:] == ["flush", "finish"]


def test_a_resumed_run_sends_nothing_twice(run: RunDirectory, listener: type[Listener]) -> None:
    tell(run, PLANNED, *steps(range(1, 6)))
    feed(run, {"a": listener})
    assert logged(listener) == [1, 2, 3, 4]
    tell(run, resumed(2), *steps(range(3, 8)), saved(7))
    feed(run, {"a": listener})
    assert logged(listener) == [1, 2, 3, 4, 5, 6, 7]
    assert read_state(run)["a"] == {"sent": 7, "resumes": 1, "id": "first"}


def test_a_tracker_that_can_go_back_gets_repeated_steps(
    run: RunDirectory, listener: type[Listener]
) -> None:
    listener.can_go_back = True
    feeder = Feeder(run, profile(), {"a": listener})
    tell(run, PLANNED, *steps(range(1, 6)))
    feeder.feed(is_over=False)
    tell(run, resumed(2), step(3, loss=9.0), step(4))
    feeder.feed(is_over=False)
    assert [t if isinstance(t, str) else t.optimizer_step for t in listener.told] == [
        *(1, 2, 3, 4, "flush"),
        *("back to 2", 3, "flush"),
    ]
    assert listener.told[-2].metrics["train/loss"] == 9.0
    tell(run, saved(4))
    feed(
        run, {"a": listener}
    )  # a resume that the feeder has already processed does not count again
    assert logged(listener) == [1, 2, 3, 4, 3, 4]


def test_a_tracker_that_is_new_to_a_run_gets_all_of_it(
    run: RunDirectory, listener: type[Listener]
) -> None:
    tell(run, PLANNED, evaluated(0), *steps([1, 2, 3]), resumed(1), *steps([2, 3]), saved(3))
    feed(run, {"a": listener})
    assert logged(listener) == [0, 1, 2, 3]


@pytest.mark.parametrize("error", [RuntimeError("no\nnetwork"), SystemExit("no")])
@pytest.mark.parametrize("where", ["__init__", "log", "finish"])
def test_a_failing_tracker_does_not_affect_the_others(
    run: RunDirectory, listener: type[Listener], where: str, error: BaseException
) -> None:
    class Failing(Listener):
        told: ClassVar[list[Any]] = []

    def fail(*_: object) -> None:
        raise error

    setattr(Failing, where, fail)
    tell(run, PLANNED, *steps([1, 2]), saved(2))
    feeder = feed(run, {"bad": Failing, "good": listener})
    assert logged(listener) == [1, 2]
    assert listener.told[-1] == "finish"
    assert not feeder.have_all_failed
    assert read_state(run)["bad"]["failed"] == "no"
    assert "failed" not in read_state(run)["good"]


def test_a_tracker_whose_folder_is_a_link_is_left_out(
    run: RunDirectory, listener: type[Listener], tmp_path: Path
) -> None:
    """It would write into a folder of others, and some trackers remove files of earlier starts."""
    (tmp_path / "outside").mkdir()
    (run.path / "other").symlink_to(tmp_path / "outside")
    tell(run, PLANNED, *steps(range(1, 3)))
    feed(run, {"own": listener, "other": listener})
    assert logged(listener)
    assert "other is a link" in read_state(run)["other"]["failed"]
    assert "failed" not in read_state(run)["own"]


def test_texts_come_only_where_the_profile_says_so(
    run: RunDirectory, listener: type[Listener]
) -> None:
    tell(run, PLANNED, evaluated(0), sampled(0), saved(0))
    feed(run, {"a": listener})
    assert listener.told[0].samples == ()
    feed(run, {"b": listener}, send_text=True)
    assert listener.told[-3].samples[0]["prompt"] == SECRET


def test_damaged_state_is_ignored(run: RunDirectory, listener: type[Listener]) -> None:
    tell(run, PLANNED, *steps([1, 2]), saved(2))
    (run.path / "track.json").write_text('{"a": 3')
    feed(run, {"a": listener})
    assert logged(listener) == [1, 2]


def test_the_configuration_names_no_file_host_or_text() -> None:
    config = config_of(profile())
    assert config["train"]["learning_rate"] == 1e-8
    assert config["data"]["max_seq_len"] == 1024
    assert "secret" not in str(config)
