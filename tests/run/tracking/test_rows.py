from __future__ import annotations

from dpo_cli.run.events import Completed, Event, Resumed
from dpo_cli.run.tracking.rows import Row, Rows
from tests.support.made_events import saved
from tests.support.tracking_streams import PLANNED, evaluated, resumed, sampled, step, steps


def rows_of(*events: Event, is_over: bool = False) -> list[Row]:
    rows = Rows()
    for event in events:
        rows.take(event)
    return rows.take_closed(is_over=is_over)


def numbers(rows: list[Row]) -> list[int]:
    return [row.optimizer_step for row in rows]


def test_a_row_has_the_names_of_trls_trainer() -> None:
    (row,) = rows_of(PLANNED, step(2), evaluated(2), step(3))
    assert row.metrics == {
        "train/learning_rate": 2e-6,
        "train/epoch": 0.5,
        "train/loss": 0.5,
        "train/rewards/margins": 0.5,
        "eval/loss": 0.6,
        "eval/logps/chosen": -20.0,
    }


def test_the_newest_row_waits_for_its_evaluation() -> None:
    rows = Rows()
    for event in (PLANNED, evaluated(0), step(1)):
        rows.take(event)
    assert numbers(rows.take_closed(is_over=False)) == [0]
    assert rows.take_closed(is_over=False) == []
    rows.take(evaluated(1))
    rows.take(sampled(1))
    rows.take(step(2))
    (row,) = rows.take_closed(is_over=False)
    assert "eval/loss" in row.metrics
    assert len(row.samples) == 1


def test_at_the_end_the_last_row_goes_if_no_resume_will_do_it_again() -> None:
    assert numbers(rows_of(*steps([1, 2]), is_over=True)) == [1]
    assert numbers(rows_of(*steps([1, 2]), saved(1), is_over=True)) == [1]
    assert numbers(rows_of(*steps([1, 2]), saved(2), is_over=True)) == [1, 2]
    completed = Completed(step=2, optimizer_step=2, weights="w")
    assert numbers(rows_of(*steps([1, 2]), completed, is_over=True)) == [1, 2]


def test_a_resume_removes_the_steps_it_repeats() -> None:
    again = step(2, loss=7.0)
    first, second = rows_of(*steps([1, 2, 3]), resumed(1), again, step(3))
    assert (first.optimizer_step, second.optimizer_step) == (1, 2)
    assert second.metrics["train/loss"] == 7.0


def test_a_resume_without_a_checkpoint_removes_everything() -> None:
    rows = Rows()
    for event in (evaluated(0), *steps([1, 2])):
        rows.take(event)
    rows.take(Resumed(step=0, optimizer_step=0, checkpoint=""))
    assert rows.resumed_after == [-1]
    assert rows.take_closed(is_over=True) == []
