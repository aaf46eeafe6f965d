"""Tests that a run that was stopped and resumed ends bit-identical to an uninterrupted one."""

from __future__ import annotations

import json
import re
import shutil
import signal
import time
from functools import partial
from pathlib import Path

import pytest
import torch

from dpo_cli.models.loading import load_model_weights, read_state_dict
from dpo_cli.run.events import (
    Completed,
    Evaluated,
    EventReader,
    Exported,
    Resumed,
    Saved,
    Stopped,
)
from dpo_cli.run.lookup import find_run
from tests.support import worker_faults, workers
from tests.support.cli import HANG_SECONDS, Run, dpo, set_options, start
from tests.support.golden_inputs import twice_asked
from tests.support.small_runs import MANY_SAVES, golden_run, small_run

SHORTER = {"train.epochs": 6}
"""Twice as many optimizer steps as two stops need."""


def real_run(shared: Path, folder: Path) -> list[str]:
    """Settings of the trained mixture of experts on real pairs, with short sequences."""
    rows = (shared / "data/dpo_en_zh_400.jsonl").read_text("utf-8").splitlines(keepends=True)
    (folder / "dpo.jsonl").write_text("".join(rows[:240]), "utf-8")
    keys = {
        "model.out_dir": shared / "checkpoints",
        "model.weights": "full_sft_256_moe.pth",
        "model.hidden_size": 256,
        "model.num_hidden_layers": 4,
        "model.tokenizer": shared / "tokenizer/minimind2",
        "data.data_path": folder / "dpo.jsonl",
        "data.max_seq_len": 96,
        "train.epochs": 1,
        "train.learning_rate": 1e-5,
        **MANY_SAVES,
    }
    return ["train", "moe", *set_options(keys)]


def commands(shared: Path, folder: Path, case: str) -> list[str]:
    return {
        # dropout uses random numbers, so their state matters
        "dense, dropout, accumulation": lambda: golden_run(
            *(shared, "seed", False),
            **{"model.dropout": 0.1, "train.accumulation_steps": 2, **SHORTER},
        ),
        "MiniMind version 3 experts, kahan_summation": lambda: golden_run(
            shared, "head", True, **{"train.kahan_summation": True, **SHORTER}
        ),
        "MiniMind version 3 experts, bfloat16 weights": lambda: golden_run(
            shared, "head", True, **{"model.weights_dtype": "bfloat16", **SHORTER}
        ),
        "real experts": lambda: real_run(shared, folder),
    }[case]()


def interrupt_after(
    arguments: list[str], cwd: Path, step: int, *signals: signal.Signals
) -> tuple[int, str]:
    """Run `dpo`, send signals once its stream shows `step`; return exit code and output."""
    process = start(*arguments, cwd=cwd)
    deadline = time.monotonic() + HANG_SECONDS
    while not any(
        f'"optimizer_step": {step},' in line
        for path in cwd.glob("runs/*/events.jsonl")
        for line in path.read_text().splitlines()
        if "StepDone" in line
    ):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    for number in signals:
        process.send_signal(number)
    output, _ = process.communicate(timeout=HANG_SECONDS)
    return process.returncode, output


@pytest.mark.parametrize(
    "case",
    [
        "dense, dropout, accumulation",
        "MiniMind version 3 experts, kahan_summation",
        "MiniMind version 3 experts, bfloat16 weights",
        "real experts",
    ],
)
def test_stopped_twice_and_resumed(shared: Path, tmp_path: Path, case: str) -> None:
    parts = tmp_path / "parts"
    parts.mkdir()
    arguments = commands(shared, tmp_path, case)
    whole = workers.new_run(tmp_path / "whole", arguments)
    assert workers.work(whole) == 0

    code, output = interrupt_after(arguments, parts, 7, signal.SIGINT)
    assert code == 130, output
    resume = re.search(r"dpo (resume \S+)", output)
    assert resume is not None, output
    first = Run.only(parts)
    assert isinstance(first.events[-2], Stopped)
    assert first.events[-2].reason == "interrupted"

    code, output = interrupt_after(resume[1].split(), parts, 15, signal.SIGTERM)
    assert code == 143, output
    result = dpo(*resume[1].split(), cwd=parts)
    assert result.returncode == 0, result.stdout + result.stderr

    uninterrupted, resumed = Run(whole), Run.only(parts)
    resumptions = [event for event in resumed.events if isinstance(event, Resumed)]
    assert len(resumptions) == 2
    assert resumptions[0].optimizer_step >= 7  # the run continued instead of starting over
    assert resumptions[1].optimizer_step >= 15
    assert resumed.metric_rows == uninterrupted.metric_rows
    assert resumed.files() == uninterrupted.files()
    assert ("compensation.safetensors" in resumed.files()) == ("kahan_summation" in case)
    evaluated = [
        [(e.step, e.metrics) for e in run.events if isinstance(e, Evaluated)]
        for run in (uninterrupted, resumed)
    ]
    assert evaluated[0] == evaluated[1]
    weights = [next(run.directory.path.glob("*_[0-9]*.pth")) for run in (uninterrupted, resumed)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


@pytest.mark.parametrize("optimizer", ["adamw8bit", "adafactor", "sgd", "muon"])
def test_killed_and_resumed_with_each_optimizer(
    shared: Path, tmp_path: Path, optimizer: str
) -> None:
    """Experts, two groups of weights, and a schedule over optimizer steps."""
    if optimizer == "adamw8bit":
        pytest.importorskip("bitsandbytes")
    arguments = golden_run(
        *(shared, "head", True),
        **{
            "train.optimizer": optimizer,
            "train.decay_norms_and_biases": False,
            "train.schedule": "wsd",
            "train.warmup_ratio": 0.2,
            "train.decay_ratio": 0.5,
            "train.learning_rate": 1e-2,
            "train.epochs": 2,
            "eval.fraction": 0.0,
        },
    )
    whole, killed = (workers.new_run(tmp_path / name, arguments) for name in ("whole", "killed"))
    assert workers.work(whole) == 0
    assert workers.work(killed, partial(worker_faults.kill_at, 8)) == -signal.SIGKILL
    assert workers.work(killed) == 0
    workers.assert_equal(killed, whole)
    events = EventReader(killed.events_path).read_new()
    assert [event.optimizer_step for event in events if isinstance(event, Resumed)] == [6]
    rates = [event.learning_rate for event in Run(killed).steps]
    assert rates[0] == 0.0
    assert max(rates) == 1e-2
    assert 0 < rates[-1] < 1e-2


def test_a_run_from_start_to_file(shared: Path, tmp_path: Path) -> None:
    """Train, complete, train more epochs, export: MiniMind loads the file."""
    out_dir = tmp_path / "out"
    out_dir.mkdir()
    start_weights = shared / "golden/train/seed/full_sft_64.pth"
    keys = {
        "model.weights": start_weights,
        "model.hidden_size": 64,
        "model.num_hidden_layers": 2,
        "model.out_dir": out_dir,
        "model.tokenizer": shared / "tokenizer/minimind2",
        "data.data_path": shared / "golden/data/train27.jsonl",
        "data.max_seq_len": 48,
        "train.epochs": 1,
        "train.learning_rate": 1e-5,
        "train.device": "cpu",
    }
    result = dpo("train", "dense", "--name", "mine", *set_options(keys), cwd=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    run = Run.only(tmp_path)
    assert run.directory.is_completed
    assert isinstance(run.events[-2], Completed)
    steps = len(run.steps)

    again = dpo("resume", "mine", cwd=tmp_path)
    assert again.returncode == 0
    assert "already complete" in again.stdout
    refused = dpo("resume", "mine", "--set", "train.epochs=2", cwd=tmp_path)
    assert refused.returncode == 2
    assert "train.epochs: 1 -> 2" in refused.stderr
    assert "--allow-changes" in refused.stderr
    more = dpo("resume", "mine", "--set", "train.epochs=2", "--allow-changes", cwd=tmp_path)
    assert more.returncode == 0, more.stdout + more.stderr
    assert len(run.steps) == 2 * steps
    assert run.steps[steps - 1].learning_rate < run.steps[steps].learning_rate

    exported = dpo("export", "mine", cwd=tmp_path)
    assert exported.returncode == 0, exported.stdout + exported.stderr
    path = out_dir / "rlhf_64.pth"
    start = read_state_dict(start_weights)
    written = torch.load(path, weights_only=True)
    assert set(written) == set(start)
    assert all(written[name].shape == tensor.shape for name, tensor in start.items())
    assert {tensor.dtype for tensor in written.values()} == {torch.float16}
    half = {name: tensor.half() for name, tensor in run.weights.items()}
    assert all(torch.equal(written[name], tensor) for name, tensor in half.items())
    assert written["lm_head.weight"].data_ptr() == written["model.embed_tokens.weight"].data_ptr()
    apart = re.search(
        r"mean difference ([\d.e-]+) nats per token, largest ([\d.e-]+)", exported.stdout
    )
    assert apart is not None, exported.stdout
    mean, largest = map(float, apart.groups())
    assert 0 < mean < largest < 0.05
    assert "python eval_model.py --model_mode 2 --out_dir" in exported.stdout

    # It may replace its own file, but no other.
    assert dpo("export", "mine", cwd=tmp_path).returncode == 0
    path.write_bytes((shared / "checkpoints/full_sft_256_moe.pth").read_bytes())
    other = dpo("export", "mine", cwd=tmp_path)
    assert other.returncode == 1
    assert "this run did not write it" in other.stderr
    precise = dpo("export", "mine", "--force", "--dtype", "float32", cwd=tmp_path)
    assert precise.returncode == 0
    assert load_model_weights(path, {}).dtype == torch.float32
    assert len([e for e in run.events if isinstance(e, Exported)]) == 3


def test_run_starts_from_a_copy_of_another_runs_weights(shared: Path, tmp_path: Path) -> None:
    """`run:NAME` is copied at the start: the other run trains on and removes its checkpoint."""

    def succeed(*arguments: str) -> None:
        result = dpo(*arguments, cwd=tmp_path)
        assert result.returncode == 0, result.stdout + result.stderr

    succeed(*small_run(shared), "--name", "first")
    from_first = {"model.weights": '"run:first"'}
    succeed(*small_run(shared, **from_first), "--name", "second")
    succeed("resume", "first", "--set", "train.epochs=2", "--allow-changes")
    succeed("resume", "second", "--set", "train.epochs=2", "--allow-changes")
    second = find_run(tmp_path / "runs", "second")
    assert len(Run(second).steps) == 14


def test_a_resume_keeps_the_split_of_an_earlier_version(shared: Path, tmp_path: Path) -> None:
    data = twice_asked(shared, tmp_path)
    arguments = small_run(shared, **{"data.data_path": data, "eval.fraction": 0.26})
    run = Run(workers.new_run(tmp_path / "runs", arguments))
    assert workers.work(run.directory) == 0
    plan = run.directory.read_plan()
    assert plan is not None
    assert (plan.pairs.held_out_known, plan.pairs.whole_prompts) == (0, True)
    values = plan.to_dict()
    del values["pairs"]["whole_prompts"]  # as an earlier version wrote it
    run.directory.plan_path.write_text(json.dumps(values))
    more = ("--set", "train.epochs=2", "--allow-changes")
    result = dpo("resume", run.directory.name, *more, cwd=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    plan = run.directory.read_plan()
    assert plan is not None
    assert not plan.pairs.whole_prompts
    assert (plan.pairs.held_out_known or 0) > 0


def test_missing_checkpoints_do_not_start_a_run_over(shared: Path, tmp_path: Path) -> None:
    run = Run(workers.new_run(tmp_path / "runs", small_run(shared)))
    assert workers.work(run.directory) == 0
    shutil.rmtree(run.checkpoint)
    result = dpo(
        "resume", run.directory.name, "--set", "train.epochs=2", "--allow-changes", cwd=tmp_path
    )
    assert result.returncode == 1
    assert "all checkpoints are damaged or gone" in result.stderr
    assert run.directory.is_completed  # as it was before


def test_an_export_that_fails_leaves_nothing(shared: Path, tmp_path: Path) -> None:
    data = tmp_path / "pairs.jsonl"
    data.write_bytes((shared / "golden/data/train27.jsonl").read_bytes())
    out_dir = tmp_path / "out"
    out_dir.mkdir()
    arguments = small_run(shared, **{"data.data_path": data, "model.out_dir": out_dir})
    assert workers.work(workers.new_run(tmp_path / "runs", arguments)) == 0
    moved = data.rename(tmp_path / "moved.jsonl")
    failed = dpo("export", cwd=tmp_path)
    assert failed.returncode == 1
    assert "pairs.jsonl" in failed.stderr
    assert not list(out_dir.iterdir())
    exported = dpo("export", "--set", f"data.data_path={moved}", cwd=tmp_path)
    assert exported.returncode == 0, exported.stdout + exported.stderr
    assert [path.name for path in out_dir.iterdir()] == ["rlhf_64.pth"]


def test_fewer_epochs_than_are_done(shared: Path, tmp_path: Path) -> None:
    arguments = small_run(shared, **{"train.epochs": 40})
    code, output = interrupt_after(arguments, tmp_path, 9, signal.SIGINT)
    assert code == 130, output
    name = Run.only(tmp_path).directory.name
    result = dpo("resume", name, "--set", "train.epochs=1", "--allow-changes", cwd=tmp_path)
    assert result.returncode == 1
    assert "train.epochs = 1" in result.stderr
    assert not Run.only(tmp_path).directory.is_completed
    assert "epochs = 40" in Run.only(tmp_path).directory.read_profile()


def test_in_the_background_and_stopped_from_elsewhere(shared: Path, tmp_path: Path) -> None:
    arguments = golden_run(shared, "seed", False, **{"train.epochs": 120})
    started = dpo(*arguments, "--detach", cwd=tmp_path)
    assert started.returncode == 0, started.stdout + started.stderr
    run = Run.only(tmp_path)
    deadline = time.monotonic() + HANG_SECONDS
    while not any(isinstance(event, Saved) for event in run.events):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    second = dpo("resume", run.directory.name, cwd=tmp_path)
    assert second.returncode == 1
    assert "process" in second.stderr  # the process that trains the run already
    stopped = dpo("stop", cwd=tmp_path)
    assert stopped.returncode == 0, stopped.stdout + stopped.stderr
    assert "dpo resume" in stopped.stdout
    assert run.directory.holder() is None
    assert isinstance(run.events[-2], Stopped)
    last = run.steps[-1].optimizer_step
    assert run.checkpoint.name == f"step-{last:08d}"
