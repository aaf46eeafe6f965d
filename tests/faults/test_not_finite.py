"""Faults 10, 11: a loss or gradient that is not finite: the run stops or skips, with evidence."""

from __future__ import annotations

import json
import math
import os
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dpo_cli.data.places import NO_PLACES
from dpo_cli.run.checkpoints import list_checkpoints
from dpo_cli.run.directory import NON_FINITE_DIRECTORY, RunDirectory
from dpo_cli.run.events import Event, EventReader, Failed, StepDone, history
from dpo_cli.training.nan_dump import has_nan_dump
from tests.faults.conftest import STEPS, arguments
from tests.support import data_faults, worker_faults, workers
from tests.support.cli import Run, dpo, set_options
from tests.support.run_content import alerts_of, content, only

WINDOW, WEIGHTS = "global_batch.json", "weights.safetensors"
EACH_STEP = {"train.save_interval": 1}
SKIP = {"train.nan_policy": "skip"}


def new_run(shared: Path, root: Path, **changes: Any) -> RunDirectory:
    return workers.new_run(root, arguments(shared) + set_options({**EACH_STEP, **changes}))


def events(run: RunDirectory) -> list[Event]:
    return list(EventReader(run.events_path).read_new())


def rows(run: RunDirectory) -> list[str]:
    """Return the metrics as text, because NaN is not equal to itself."""
    return [repr(row) for row in Run(run).metric_rows]


def lines_of(run: RunDirectory, optimizer_step: int) -> list[list[int]]:
    """Return the data lines of each micro-batch of a step, computed independently of the evidence.

    There is one pair per micro-batch, in the order of the file, without the held-out pairs.
    """
    from dpo_cli.data.sampler import hold_out

    plan = run.read_plan()
    assert plan is not None
    aside = {json.loads(row)["line"] for row in run.skipped_rows_path.read_text().splitlines()}
    usable = [line for line in range(1, 28) if line not in aside]
    training, _ = hold_out(len(usable), 0.2, 1337)
    per_epoch = plan.steps.micro_batches_per_epoch
    per_step = -(-per_epoch // 2)
    first = (optimizer_step - 1) % per_step * 2
    return [[usable[training[n]]] for n in range(first, min(first + 2, per_epoch))]


@pytest.mark.parametrize("what", ["nan", "infinite", "gradient"])
def test_it_stops_before_the_update(
    shared: Path, tmp_path: Path, whole: RunDirectory, what: str
) -> None:
    run = new_run(shared, tmp_path)
    assert workers.work(run, partial(data_faults.not_finite, (4,), what)) == 1
    lines = lines_of(run, 4)
    failed = only(events(run), Failed)
    assert failed.exit_code == 1
    guilty = [*chain(*lines)] if what == "gradient" else lines[1]
    subject = "gradient" if what == "gradient" else "loss"
    assert failed.message == (
        f"optimizer step 4: the {subject} is not a finite number; the weights were not touched"
    )
    kept = run.path / NON_FINITE_DIRECTORY / "step-00000004"
    data = shared / "golden/data/train27.jsonl"
    assert failed.details == (
        f"{NO_PLACES.names(guilty, most=9)} of {data}",
        f"the dump of the step is in {kept}",
    )
    assert "--set train.nan_policy=skip --allow-changes" in failed.remedy
    assert Run(run).steps[-1].optimizer_step == 3

    # The checkpoint of step 3 is the start of step 4.
    newest, _ = list_checkpoints(run.checkpoints_path)
    assert newest.optimizer_step == 3
    assert (kept / WEIGHTS).read_bytes() == (newest.path / WEIGHTS).read_bytes()
    facts = json.loads((kept / WINDOW).read_text())
    assert [micro["lines"] for micro in facts["micro_batches"]] == lines
    losses = [float(micro["loss"]) for micro in facts["micro_batches"]]
    assert math.isfinite(losses[0])
    assert math.isfinite(losses[1]) == (what == "gradient")
    assert "model.embed_tokens.weight" in facts["gradients_not_finite"]
    assert sorted(os.listdir(kept)) == [WINDOW, WEIGHTS]

    # The dump stays unchanged when the resumed run reaches the step again.
    before = content(run.path, "events.jsonl", "worker.log", "lock")
    assert workers.work(run, partial(data_faults.not_finite, (4,), what)) == 1
    assert content(run.path, "events.jsonl", "worker.log", "lock") == before
    # Without the fault, the run continues as usual.
    assert workers.work(run) == 0
    workers.assert_equal(run, whole)


@pytest.mark.parametrize("what", ["nan", "gradient"])
def test_skipping_goes_on_and_resumes_to_the_same_bits(
    shared: Path, tmp_path: Path, what: str
) -> None:
    fault = partial(data_faults.not_finite, (1, 4, 5, 9), what)
    run = new_run(shared, tmp_path, **SKIP)
    assert workers.work(run, fault) == 0
    steps = Run(run).steps
    assert len(steps) == STEPS
    assert [step.optimizer_step for step in steps if step.is_skipped] == [1, 4, 5, 9]
    assert steps[0].metrics["weights_moved"] == 0
    alerts = alerts_of(events(run))
    alerts = [alert for alert in alerts if alert.code != "tokenizer-mismatch"]  # untrained weights
    assert [alert.code for alert in alerts] == ["not-finite"] * 4
    for alert, step in zip(alerts, (1, 4, 5, 9), strict=True):
        lines = lines_of(run, step)
        guilty = [*chain(*lines)] if what == "gradient" else lines[1]
        assert alert.message.startswith(f"optimizer step {step}: the ")
        assert f"skipped: {NO_PLACES.names(guilty, most=9)} of " in alert.message
    [kept] = (run.path / NON_FINITE_DIRECTORY).iterdir()
    assert kept.name == "step-00000001"

    # Stopped after a skipped first step (no moments yet), after two others, and killed.
    halves = new_run(shared, tmp_path / "halves", **SKIP)
    for step in (1, 5):
        assert workers.work(
            halves, partial(data_faults.both, fault, partial(worker_faults.stop_at, step))
        )
    assert (
        workers.work(halves, partial(data_faults.both, fault, partial(worker_faults.kill_at, 9)))
        < 0
    )
    assert workers.work(halves, fault) == 0
    assert rows(halves) == rows(run)
    assert [s.is_skipped for s in Run(halves).steps] == [s.is_skipped for s in steps]
    assert Run(halves).files() == Run(run).files()
    assert content(halves.path / NON_FINITE_DIRECTORY) == content(run.path / NON_FINITE_DIRECTORY)


def test_a_skipped_update_leaves_the_whole_state_but_the_random_numbers(
    shared: Path, tmp_path: Path
) -> None:
    run = new_run(shared, tmp_path, **SKIP)
    fault = partial(data_faults.not_finite, (4,), "gradient")
    assert (
        workers.work(run, partial(data_faults.both, fault, partial(worker_faults.stop_at, 4)))
        == 143
    )
    after, before = (
        content(checkpoint.path) for checkpoint in list_checkpoints(run.checkpoints_path)
    )
    for name in (WEIGHTS, "exp_avg.safetensors", "exp_avg_sq.safetensors"):
        assert after[name] == before[name]
    now, then = json.loads(after["state.json"]), json.loads(before["state.json"])
    assert (then["optimizer_step"], then["updates"]) == (3, 3)
    assert (now["optimizer_step"], now["updates"]) == (4, 3)


def test_nothing_but_skipped_steps(shared: Path, tmp_path: Path) -> None:
    """At this beta the gradient of a loss of ln 2 overflows float32; the weights never move."""
    changes = {"dpo.beta": 1e38, "train.epochs": 1, "model.dropout": 0.0}
    run = new_run(shared, tmp_path, **SKIP, **changes)
    assert workers.work(run, partial(worker_faults.stop_at, 3)) == 143
    assert workers.work(run) == 0
    steps = Run(run).steps
    assert all(step.is_skipped for step in steps)
    assert steps[0].losses[0] == pytest.approx(math.log(2), abs=1e-6)
    assert steps[-1].optimizer_step == STEPS // 2
    start = torch.load(shared / "golden/train/seed/full_sft_64.pth")
    for name, tensor in Run(run).weights.items():
        assert torch.equal(tensor, start[name].float()), name


def test_evidence_that_finds_no_space_is_written_later(shared: Path, tmp_path: Path) -> None:
    run = new_run(shared, tmp_path)
    fault = partial(data_faults.not_finite, (4,), "nan")
    full = partial(data_faults.both, fault, partial(data_faults.no_space_for, WEIGHTS))
    kept = run.path / NON_FINITE_DIRECTORY
    assert workers.work(run, full) == 75
    assert "no space left to write in" in only(events(run), Failed).message
    assert not has_nan_dump(kept)
    newest, _ = list_checkpoints(run.checkpoints_path)
    assert newest.optimizer_step == 3
    assert workers.work(run, fault) == 1
    assert (kept / "step-00000004" / WEIGHTS).read_bytes() == (newest.path / WEIGHTS).read_bytes()
    assert sorted(os.listdir(kept / "step-00000004")) == [WINDOW, WEIGHTS]


def test_evidence_belongs_to_the_step_in_its_name(shared: Path, tmp_path: Path) -> None:
    """A run stopped at one step, was changed, and stops at another one: the message is right."""
    run = new_run(shared, tmp_path)
    assert workers.work(run, partial(data_faults.not_finite, (4,), "nan")) == 1
    assert workers.work(run, partial(data_faults.not_finite, (7,), "nan")) == 1
    failed = [event for event in events(run) if isinstance(event, Failed)][-1]
    kept = run.path / NON_FINITE_DIRECTORY / "step-00000007"
    assert failed.details[1] == f"the dump of the step is in {kept}"
    newest, _ = list_checkpoints(run.checkpoints_path)
    assert newest.optimizer_step == 6
    assert (kept / WEIGHTS).read_bytes() == (newest.path / WEIGHTS).read_bytes()


def test_dpo_stops_and_can_be_told_to_skip(shared: Path, tmp_path: Path) -> None:
    """After the first update at this learning rate no gradient is finite."""
    changes = {**EACH_STEP, "train.learning_rate": 1e30, "train.epochs": 1}
    result = dpo(*arguments(shared), *set_options(changes), cwd=tmp_path)
    run = Run.only(tmp_path).directory
    assert result.returncode == 1
    error, *details = result.stderr.splitlines()
    assert error == (
        "error: optimizer step 2: the gradient is not a finite number; the weights were not touched"
    )
    lines = [*chain(*lines_of(run, 2))]
    data = shared / "golden/data/train27.jsonl"
    assert f"  lines {', '.join(map(str, lines))} of {data}" in details
    assert "Traceback" not in result.stdout + result.stderr
    [checkpoint] = list_checkpoints(run.checkpoints_path)
    saved = content(checkpoint.path)
    kept = load_file(run.path / NON_FINITE_DIRECTORY / "step-00000002" / WEIGHTS)
    assert all(torch.equal(kept[n], t) for n, t in load_file(checkpoint.path / WEIGHTS).items())

    options = set_options(SKIP)
    refused = dpo("resume", run.path, *options, cwd=tmp_path)
    assert refused.returncode == 2
    assert 'train.nan_policy: "stop" -> "skip"' in refused.stderr
    assert content(checkpoint.path) == saved
    resumed = dpo("resume", run.path, *options, "--allow-changes", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert "warning: optimizer step 2: the gradient is not a finite number; this update" in (
        resumed.stdout
    )
    steps = [event for event in history(run.events_path) if isinstance(event, StepDone)]
    assert [step.is_skipped for step in steps] == [False] + [True] * (STEPS // 2 - 1)
    assert Run(run).files()[WEIGHTS] == saved[WEIGHTS]
    step_lines = [
        line for line in resumed.stdout.splitlines() if line.startswith(("step ", "micro-step "))
    ]
    assert step_lines
    assert all(line.endswith("  skipped") for line in step_lines)
