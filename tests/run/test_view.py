"""Tests of RunView: states, times, means, and the steps that a resume removes."""

from __future__ import annotations

import dataclasses

import pytest

from dpo_cli.run.events import (
    EVALUATION,
    Alert,
    Completed,
    Evaluated,
    Event,
    Failed,
    Planned,
    Progress,
    Resumed,
    Sampled,
    Saved,
    Stopped,
    WorkerEnded,
    WorkerStarted,
)
from dpo_cli.run.view import RECENT_STEPS, RunState, RunView
from tests.support import made_events, story

STARTED = WorkerStarted(pid=8, device="cpu", device_name="", dtype="float32", versions={})


def seen(*events: Event) -> RunView:
    view = RunView()
    for event in events:
        view.take(event)
    return view


def test_the_states_of_a_whole_run() -> None:
    view = RunView()
    states = [view.state]
    for event in story.whole():
        view.take(event)
        if view.state is not states[-1]:
            states.append(view.state)
    assert states == [
        RunState.STARTING,
        RunState.PREPARING,
        RunState.EVALUATING,
        RunState.TRAINING,
        RunState.EVALUATING,
        RunState.SAVING,
        RunState.COMPLETED,
    ]


def test_state_during_evaluations() -> None:
    started, encoding, *planned = story.preparation()
    assert seen(started, encoding).state is RunState.PREPARING
    assert seen(started, encoding, *planned).state is RunState.EVALUATING

    half = Progress(phase=EVALUATION, done=42, total=84, unit="pairs")
    view = seen(*story.preparation(), *story.training(0, 10), story.at(40, half))
    assert view.state is RunState.EVALUATING
    for event in story.training(10, 12):
        view.take(event)
    assert view.state is RunState.TRAINING


@pytest.mark.parametrize(
    ("event", "state"),
    [
        (Stopped(reason="interrupted", step=10, optimizer_step=5), RunState.STOPPED),
        (Failed(message="m"), RunState.FAILED),
        (WorkerEnded(exit_code=1), RunState.FAILED),
        (WorkerEnded(exit_code=137, signal=9), RunState.KILLED),
        (Completed(step=10, optimizer_step=5, weights="w"), RunState.COMPLETED),
    ],
)
def test_ends_and_new_starts(event: Event, state: RunState) -> None:
    view = seen(*story.preparation(), *story.training(0, 10), story.at(40, event))
    assert view.state is state
    view.take(WorkerEnded(exit_code=1))
    assert view.state is state
    view.take(STARTED)
    assert view.state is RunState.PREPARING


def test_state_while_stopping() -> None:
    view = seen(*story.preparation(), *story.training(0, 10))
    view.is_stopping = True
    assert view.state is RunState.STOPPING
    view.take(Stopped(reason="interrupted", step=10, optimizer_step=5))
    assert view.state is RunState.STOPPED


def test_elapsed_counts_all_starts_and_no_pauses() -> None:
    view = seen(*story.preparation(), *story.training(0, 10))
    assert view.elapsed_seconds(view.time) == pytest.approx(20.0)
    assert view.elapsed_seconds(view.time + 3) == pytest.approx(23.0)
    view.take(story.at(21, Stopped(reason="interrupted", step=10, optimizer_step=5)))
    # The launcher's clock starts with its only event.
    view.take(dataclasses.replace(WorkerEnded(exit_code=130), time=view.time + 1))
    assert view.elapsed_seconds(view.time + 1e6) == pytest.approx(21.0)
    tomorrow = view.time + 86_400
    view.take(dataclasses.replace(STARTED, time=tomorrow))
    assert view.elapsed_seconds(tomorrow + 4) == pytest.approx(25.0)


def test_time_left_falls_between_events() -> None:
    view = seen(*story.preparation(), *story.training(0, 100))
    left = view.seconds_left(view.time)
    last_evaluation = story.evaluated(400).seconds  # type: ignore[attr-defined]
    assert left == pytest.approx(300 * story.STEP_SECONDS + last_evaluation)
    assert view.seconds_left(view.time + 5) == pytest.approx(left - 5)
    assert view.seconds_left(view.time + 1e9) == 0
    assert seen(*story.preparation()).seconds_left(0) is None


def test_recent_mean_uses_the_last_steps_with_a_value() -> None:
    view = seen(*story.preparation(), *story.training(0, 100))
    assert len(view.recent) == RECENT_STEPS
    gaps = [0.018 * step / story.STEPS for step in range(62, 101, 2)]
    assert view.recent_mean("margin_per_token") == pytest.approx(sum(gaps) / len(gaps))
    assert view.recent_mean("weights_moved") == pytest.approx(0.05 * 90 / 400)
    assert view.recent_mean("aux_loss") is None
    assert view.weights_moved == pytest.approx(0.05 * 100 / 400)


def test_the_share_of_clipped_steps() -> None:
    view = seen(*story.preparation(), *story.training(0, 100))
    norms = [step.metrics["grad_norm"] for step in map(story.step_done, range(2, 101, 2))]
    expected = sum(norm > 1.0 for norm in norms) / len(norms)
    assert view.trained["clipped"].mean == pytest.approx(expected)


def test_skipped_steps_count_once() -> None:
    def skipped(step: int) -> Event:
        return dataclasses.replace(story.step_done(step), is_skipped=True)  # type: ignore[call-arg]

    view = seen(*story.preparation(), *story.training(0, 10))
    assert view.skipped_steps == []
    for step in (12, 14, 18):
        view.take(skipped(step))
    view.take(story.step_done(20))
    assert view.skipped_steps == [12, 14, 18]
    # Events after the checkpoint from which training continues are void, and are repeated.
    view.take(STARTED)
    view.take(Resumed(step=14, optimizer_step=7, checkpoint="step-00000007"))
    assert view.skipped_steps == [12, 14]
    for step in (16, 18):
        view.take(skipped(step))
    assert view.skipped_steps == [12, 14, 16, 18]
    view.take(Resumed(step=0, optimizer_step=0, checkpoint=""))
    assert view.skipped_steps == []


def test_a_resume_removes_lost_steps() -> None:
    view = seen(*story.preparation(), *story.training(0, 130), STARTED)
    view.take(Resumed(step=100, optimizer_step=50, checkpoint="step-00000050"))
    assert view.step == 100
    assert view.last_step is not None
    assert view.last_step.step == 100
    assert view.seconds_left(view.time) is None  # the clock of the new worker has no event yet
    assert view.trained["loss"].points[-1][0] == 100
    assert view.held_out is not None
    assert view.held_out.step == 100
    view.take(story.step_done(102))
    # The mean is over the last valid steps, of any worker.
    assert [step.step for step in view.recent] == [92, 94, 96, 98, 100, 102][-len(view.recent) :]
    assert len(view.recent) == RECENT_STEPS - 15 + 1
    last_evaluation = story.evaluated(400).seconds  # type: ignore[attr-defined]
    assert view.seconds_left(view.time) == pytest.approx(298 * 1.4 + last_evaluation)


def test_time_left_counts_evaluations_apart_from_steps() -> None:
    settings = {**story.PLAN.settings, "eval": {"interval": 150}}
    plan = dataclasses.replace(story.PLAN, settings=settings)  # of 400 micro-batches
    evaluation = {"metrics": {}, "pairs": 20, "seconds": 30.0}
    events: list[Event] = [Planned(plan=plan), STARTED]
    for step in (1, 2, 3, 4):
        seconds = step + (40.0 if step > 2 else 0.0)  # a step a second, and 40 s for an evaluation
        events.append(made_events.step_done(step, elapsed_seconds=seconds))
        if step == 2:
            events.append(Evaluated(step=2, optimizer_step=2, **evaluation))  # type: ignore[arg-type]
            events.append(Sampled(step=2, optimizer_step=2, samples=(), seconds=10.0))
    view = seen(*events)
    # Evaluations after steps 150, 300 and 400.
    assert view.seconds_left(view.time) == pytest.approx(396 + 3 * 40)
    view.take(Progress(phase=EVALUATION, done=5, total=20, unit="pairs"))
    assert view.seconds_left(view.time) == pytest.approx(396 + 3.75 * 40)


def test_the_last_evaluation_is_after_the_last_step() -> None:
    view = seen(*story.preparation(), *story.training(0, 398), story.step_done(400))
    assert view.is_at_the_end
    assert view.state is RunState.EVALUATING
    assert view.seconds_left(view.time) == pytest.approx(story.evaluated(400).seconds)  # type: ignore[attr-defined]
    view.take(story.evaluated(400))
    assert view.seconds_left(view.time) == 0


def test_memory_is_bounded() -> None:
    view = RunView()
    for step in range(2, 20_000, 2):
        view.take(story.step_done(step))
    assert max(len(series.points) for series in view.trained.values()) <= 256


def test_the_newest_alert_of_a_code_counts() -> None:
    newer = dataclasses.replace(story.SLOW, message="still")
    view = seen(story.SLOW, story.CHINESE, newer)
    assert [alert.message for alert in view.alerts.values()][-1] == "still"
    assert len(view.alerts) == 2


def test_the_last_save() -> None:
    view = seen(*story.preparation(), *story.training(0, 130))
    assert isinstance(view.saved, Saved)
    assert view.saved.step == 100


def test_alerts_from_before_the_last_start_are_marked() -> None:
    busy, ranks = Alert(code="cpu-contention", message="m"), Alert(code="idle-gpus", message="m")
    stopped = Stopped(reason="interrupted", step=2, optimizer_step=1)
    view = seen(STARTED, busy)
    assert view.earlier_alerts == set()
    view.take(stopped)
    assert view.earlier_alerts == set()
    view.expect_start()
    assert view.earlier_alerts == {"cpu-contention"}
    view.take(ranks)  # written by the launcher, about the next start
    view.take(STARTED)
    assert view.earlier_alerts == {"cpu-contention"}
    view.take(busy)
    assert view.earlier_alerts == set()
