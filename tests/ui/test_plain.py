"""Tests of the plain lines of a run."""

from __future__ import annotations

import dataclasses
import io
import math
from pathlib import Path

import pytest
from rich.console import Console

from dpo_cli.run.directory import RunDirectory
from dpo_cli.run.event_writer import EventWriter
from dpo_cli.run.events import (
    Alert,
    Completed,
    Evaluated,
    Event,
    Failed,
    Planned,
    Progress,
    Resumed,
    Saved,
    StepDone,
    Stopped,
    WorkerEnded,
    WorkerStarted,
)
from dpo_cli.run.plan import PlannedPairs, PlannedSteps
from dpo_cli.run.thinning import read_view
from dpo_cli.run.view import RunView
from dpo_cli.ui.terminal.dashboard import Dashboard
from dpo_cli.ui.terminal.ending import ending_lines
from dpo_cli.ui.terminal.plain import PlainReport
from tests.support import judged_runs, story

NAME = "dense-20260101-120000-ab12"
PLAN = dataclasses.replace(
    story.PLAN,
    model=dataclasses.replace(story.PLAN.model, description="MiniMind2 512x8, full_sft_512.pth"),
    pairs=PlannedPairs(kept=329, skipped_rows=51, held_out=20, held_out_skipped_rows=0),
    steps=PlannedSteps(
        micro_batches=166, micro_batches_per_epoch=83, optimizer_steps=84, accumulation_steps=2
    ),
    settings={
        "data": {"max_seq_len": 1024},
        "dpo": {"beta": 0.1, "reduction": "mean"},
        "train": {
            "learning_rate": 1e-8,
            "schedule": "minimind2",
            "layout": "packed",
            "log_interval": 40,
            "epochs": 2,
            "batch_size": 4,
        },
    },
)


def shown(*events: Event, quiet: bool = False, width: int = 80) -> list[str]:
    """Return the lines that a report prints on a pipe of `width` columns."""
    console = Console(file=io.StringIO(), width=width, soft_wrap=True)
    report = PlainReport(console, NAME, Path("runs", NAME), quiet=quiet)
    for event in events:
        report(event)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def step_done(step: int, *, elapsed_seconds: float | None = None, window: int = 1) -> StepDone:
    return StepDone(
        elapsed_seconds=float(step) if elapsed_seconds is None else elapsed_seconds,
        step=step,
        optimizer_step=step // window,
        epoch=1,
        learning_rate=9.1e-9,
        losses=(0.6931,) * window,
        metrics={
            "loss": 0.68932,
            "rewards/margins": 0.00312,
            "rewards/accuracies": 0.55,
            "grad_norm": 0.2812,
        },
        pairs=4 * window,
        tokens=100,
        padding_tokens=0,
        seconds=0.8 * window,
        process_bytes=2**30,
        device_bytes=0,
    )


def test_the_plan() -> None:
    assert shown(Planned(plan=PLAN), width=40) == [
        "model     MiniMind2 512x8, full_sft_512.pth, 25,829,888 parameters",
        f"data      329 pairs, 20 held out, 51 skipped rows: runs/{NAME}/skipped_rows.jsonl",
        "steps     2 epochs x 83 micro-batches of 4 pairs, 2 per step = 84 steps",
        "lr        1e-08, schedule minimind2",
        "objective DPO, beta 0.1, mean over tokens",
        "device    cpu, float32, packed layout",
    ]


def test_a_step_is_one_line_with_speed_and_time_left() -> None:
    steps = [step_done(k) for k in range(1, 41)]
    assert shown(Planned(plan=PLAN), *steps, width=40)[-1] == (
        "micro-step 40/166  epoch 1/2  loss 0.6893  lr 9.1e-09  margin +0.00312  acc 0.55"
        "  grad 0.281  5.0 pairs/s  eta 2m 06s"
    )


def test_a_skipped_step_says_so_at_its_end() -> None:
    skipped_step = dataclasses.replace(step_done(2), is_skipped=True, losses=(math.nan,))
    skipped_step.metrics.update(loss=math.nan, grad_norm=math.inf)
    *_, before, line, after = shown(Planned(plan=PLAN), step_done(1), skipped_step, step_done(5))
    assert line.startswith("micro-step 2/166  epoch 1/2  loss nan  ")
    assert "  grad inf  " in line
    assert line.endswith("  eta 2m 44s  skipped")
    assert "skipped" not in before + after


def test_the_first_step_estimates_from_its_own_time() -> None:
    [*_, line] = shown(Planned(plan=PLAN), step_done(2, window=2))
    assert line.endswith("5.0 pairs/s  eta 2m 11s")  # 164 steps of 0.8 s


def test_without_a_plan_a_step_has_no_totals() -> None:
    [line] = shown(step_done(1))
    assert line.startswith("step 1  epoch 1  loss")
    assert "eta" not in line


@pytest.mark.parametrize(
    ("window", "expected"), [(1, [1, 2, 5, 10, 40, 80, 120, 160, 166]), (4, [4, 8, 12, 40])]
)
def test_which_steps_are_shown(window: int, expected: list[int]) -> None:
    steps = [
        step_done(k, elapsed_seconds=k * 0.1, window=window) for k in range(window, 167, window)
    ]
    lines = shown(Planned(plan=PLAN), *steps)
    numbers = [
        int(line.split()[1].split("/")[0]) for line in lines if line.startswith("micro-step ")
    ]
    assert numbers[: len(expected)] == expected


def test_silence_is_never_longer_than_30_seconds() -> None:
    steps = [step_done(k, elapsed_seconds=10.0 * k) for k in range(11, 25)]
    lines = shown(Planned(plan=PLAN), *steps)
    numbers = [line.split()[1] for line in lines if line.startswith("micro-step ")]
    assert numbers == ["11/166", "14/166", "17/166", "20/166", "23/166"]


def test_only_long_phases_are_printed_and_not_too_often() -> None:
    def progress(phase: str, done: int, elapsed_seconds: float) -> Progress:
        return Progress(
            elapsed_seconds=elapsed_seconds, phase=phase, done=done, total=400, unit="pairs"
        )

    quick = [progress("reading", k, k * 0.004) for k in range(400)]
    long = [progress("encoding", k, 10 + k * 0.0125) for k in range(401)]
    assert shown(*quick, *long) == [
        "encoding 40 % (160 of 400 pairs)",
        "encoding 80 % (320 of 400 pairs)",
    ]


def test_a_phase_of_unknown_length_has_no_percentage() -> None:
    events = [
        Progress(elapsed_seconds=t, phase="reading", done=7, total=0, unit="rows") for t in (0.0, 3)
    ]
    assert shown(*events) == ["reading (7 rows)"]


def test_evaluations_saves_and_ends() -> None:
    lines = shown(
        Evaluated(
            step=40,
            optimizer_step=20,
            metrics={"loss": 0.69, "rewards/margins": -0.01, "rewards/accuracies": 0.5},
            pairs=20,
            seconds=3.2,
        ),
        Saved(
            step=40,
            optimizer_step=20,
            checkpoint="step-00000020",
            weights="rlhf_512.pth",
            size_bytes=310_000_000,
            seconds=0.71,
        ),
        Planned(plan=PLAN),
        Stopped(reason="interrupted", step=40, optimizer_step=20),
        Stopped(reason="terminated", step=0, optimizer_step=0),
        Completed(step=166, optimizer_step=84, weights="rlhf_512.pth"),
    )
    assert [line for line in lines if line not in shown(Planned(plan=PLAN))] == [
        "held-out after step 20  loss 0.6900  margin -0.01  acc 0.50  20 pairs in 3s",
        "saved checkpoint after step 20 (310.0 MB in 0.7s)",
        "interrupted after step 20; everything is saved",
        f"resume: dpo resume {NAME}",
        "terminated before the first step",
        f"resume: dpo resume {NAME}",
        f"done: 84 steps in 0s, weights in runs/{NAME}/rlhf_512.pth",
        f"export: dpo export {NAME}  (loaded back and compared)",
    ]


def test_without_a_plan_there_is_no_resume_command() -> None:
    assert shown(Stopped(reason="interrupted", step=0, optimizer_step=0)) == []


def test_a_resume_without_checkpoint() -> None:
    resumed = Resumed(optimizer_step=0, step=0, checkpoint="")
    assert shown(resumed) == ["resuming from the first step: no checkpoint was saved"]


def test_a_resume_names_damaged_checkpoints_and_shows_the_first_step() -> None:
    resumed = Resumed(
        optimizer_step=21,
        step=42,
        checkpoint="step-00000021",
        passed_over=("step-00000030 is damaged: the content of weights.safetensors has changed",),
        changes=("train.epochs: 2 -> 4",),
    )
    assert shown(Planned(plan=PLAN), resumed, step_done(43), step_done(44))[6:-1] == [
        "warning: step-00000030 is damaged: the content of weights.safetensors has changed",
        "resuming after step 21 (micro-step 42)",
        "  changed train.epochs: 2 -> 4",
    ]
    assert shown(resumed, quiet=True)[0].startswith("warning: step-00000030")
    assert len(shown(resumed, quiet=True)) == 1


def test_time_left_after_a_resume() -> None:
    """The elapsed seconds of the new worker start again at 0."""
    started = WorkerStarted(pid=1, device="cpu", device_name="", dtype="float32", versions={})
    resumed = Resumed(optimizer_step=36, step=72, checkpoint="step-00000036")
    before = [step_done(step, elapsed_seconds=1000.0 + step) for step in (71, 72)]
    after = [step_done(step, elapsed_seconds=5.0 + step) for step in range(73, 81)]
    lines = shown(Planned(plan=PLAN), *before, started, resumed, *after)
    assert lines[-1].startswith("micro-step 80/166")
    assert lines[-1].endswith("eta 1m 26s")  # 86 steps of a second


def of_ranks(step: int, *seconds: float) -> StepDone:
    return dataclasses.replace(
        step_done(step), rank_seconds=seconds, rank_bytes=(1,) * len(seconds)
    )


def test_a_straggler_is_named_once_after_several_steps() -> None:
    hosts = ("node0", "node0", "node1")
    started = WorkerStarted(
        pid=1, device="cpu", device_name="", dtype="float32", versions={}, hosts=hosts
    )
    steps = [of_ranks(step, 1.0, 1.1, 1.8) for step in range(1, 21)]
    lines = shown(started, *steps, quiet=True)
    assert lines == [
        "warning: rank 2 on node1 is slow: 1.8 s per step, median 1.1 s; all other ranks wait"
        " for it"
    ]
    assert shown(started, *steps[:4], quiet=True) == []
    assert len(shown(started, *steps, started, *steps, quiet=True)) == 2
    even = [of_ranks(step, 1.0, 1.1, 1.6) for step in range(1, 21)]
    assert shown(started, *even, quiet=True) == []


@pytest.mark.parametrize(("seconds", "is_slow"), [((1.0, 1.6), True), ((1.4, 1.0), False)])
def test_one_of_two_ranks_can_be_the_slow_one(seconds: tuple[float, ...], is_slow: bool) -> None:
    steps = [of_ranks(step, *seconds) for step in range(1, 9)]
    assert len(shown(*steps, quiet=True)) == is_slow


@pytest.mark.parametrize(
    ("hosts", "line"),
    [
        (("a", "a"), "ranks     2 on this machine"),
        (("a", "a", "b"), "ranks     3 on 2 machines: a, b"),
    ],
)
def test_number_and_hosts_of_ranks(hosts: tuple[str, ...], line: str) -> None:
    started = WorkerStarted(
        pid=1, device="cpu", device_name="", dtype="float32", versions={}, hosts=hosts
    )
    assert shown(started) == [line]
    assert shown(dataclasses.replace(started, hosts=("a",))) == []


def test_quiet_shows_alerts_and_the_end_only() -> None:
    assert shown(
        Planned(plan=PLAN),
        step_done(1),
        Progress(elapsed_seconds=9, phase="x", done=0, total=1, unit="y"),
        Alert(code="drift", message="far from the reference [1/2]", remedy="stop earlier"),
        Completed(step=1, optimizer_step=1, weights="w"),
        quiet=True,
    ) == [
        "warning: far from the reference [1/2]",
        "   help: stop earlier",
        f"done: 1 step in 9s, weights in runs/{NAME}/w",
        f"export: dpo export {NAME}  (loaded back and compared)",
    ]


def test_errors_printed_by_the_command_are_not_repeated() -> None:
    assert shown(Failed(message="m"), WorkerEnded(exit_code=1)) == []


def test_no_color_on_a_pipe_or_if_not_wanted() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, no_color=True, width=80)
    PlainReport(console, NAME, Path("runs"))(Alert(code="c", message="m"))
    assert isinstance(console.file, io.StringIO)
    assert "\x1b[3" not in console.file.getvalue()


# --- harm that a run did -----------------------------------------------------------------------


def test_a_run_that_got_worse_ends_with_a_red_line() -> None:
    assert shown(*judged_runs.WORSE, quiet=True) == [
        f"done: 15 steps in 0s, weights in runs/{NAME}/w",
        "worse: the loss of 6 held-out pairs rose from 0.6931 to 0.7200",
        "   help: Set train.learning_rate = 5e-6, as dpo init proposes.",
        f"export: dpo export {NAME} --best  (step 6)  (loaded back and compared)",
    ]
    console = Console(file=io.StringIO(), force_terminal=True, width=200)
    report = PlainReport(console, NAME, Path("runs", NAME), quiet=True)
    for event in judged_runs.WORSE:
        report(event)
    assert isinstance(console.file, io.StringIO)
    assert "\x1b[1;31mworse: \x1b[0m\x1b[31mthe loss of 6" in console.file.getvalue()


def test_a_resumed_run_is_compared_with_its_first_start(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    writer = EventWriter(run.events_path, mend=False)
    console = Console(file=io.StringIO(), width=200)
    report = PlainReport(
        console, NAME, tmp_path, read_view=lambda: read_view(run.events_path), quiet=True
    )
    resumed = Resumed(optimizer_step=6, step=6, checkpoint="step-6")
    events: list[Event] = [*judged_runs.WORSE[:3], resumed, *judged_runs.WORSE[3:]]
    for event in events:
        writer.append(event)
    writer.close()
    for event in events[3:]:
        report(event)
    assert isinstance(console.file, io.StringIO)
    assert "rose from 0.6931 to 0.7200" in console.file.getvalue()


def test_the_panel_and_the_last_lines_say_it_too() -> None:
    view = RunView.of(judged_runs.WORSE)
    lines = [line.plain for line in ending_lines(view, NAME, Path("runs", NAME), None)]
    assert "worse: the loss of 6 held-out pairs rose from 0.6931 to 0.7200" in lines
    panel = Dashboard(view, NAME, Path("runs", NAME), now=0.0)
    console = Console(file=io.StringIO(), width=100, height=30)
    console.print(panel, end="")
    assert isinstance(console.file, io.StringIO)
    drawn = console.file.getvalue()
    assert "worse: the loss of 6 held-out pairs rose" in drawn
    assert "--best" in drawn.splitlines()[-1]


def test_the_last_lines_explain_both_accuracies_in_80_columns() -> None:
    view = RunView.of(story.contender({}))
    ending = ending_lines(view, "plain", Path("runs/plain"), None)
    lines = "\n".join(line.plain for line in ending)
    about = lines[lines.index("held-out: ") :].splitlines()[:4]
    assert about[1] == ("          accuracy 0.82, ranking 0.52 -> 0.72")
    assert [line.partition(":")[0].strip() for line in about[2:]] == ["accuracy", "ranking"]
    assert max(map(len, about)) <= 80
