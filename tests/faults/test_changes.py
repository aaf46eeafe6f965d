"""Faults 20 to 22: the inputs or the environment of a run differ when it is resumed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dpo_cli.run.directory import RunDirectory
from dpo_cli.run.events import EventReader, Failed, Resumed
from tests.faults.conftest import arguments
from tests.support import workers
from tests.support.cli import Run, dpo, set_options
from tests.support.run_content import alerts_of, content, new_events, only
from tests.support.worker_faults import stop_at

LOGS = ("events.jsonl", "worker.log", "lock")


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count(old) == 1
    path.write_text(text.replace(old, new), encoding="utf-8")


# --- 20: the profile --------------------------------------------------------------------------

RATE = ("learning_rate = 0.0001", "learning_rate = 0.0002")


def test_an_edited_learning_rate_needs_allow_changes(half: RunDirectory) -> None:
    edit(half.profile_path, *RATE)
    before = content(half.path, "lock")
    refused = dpo("resume", half.path, cwd=half.path)
    assert refused.returncode == 2
    assert "  train.learning_rate: 0.0001 -> 0.0002" in refused.stderr.splitlines()
    assert refused.stderr.rstrip().endswith("--allow-changes")
    assert content(half.path, "lock") == before

    allowed = dpo("resume", half.path, "--allow-changes", cwd=half.path)
    assert allowed.returncode == 0, allowed.stderr
    assert "  changed train.learning_rate: 0.0001 -> 0.0002" in allowed.stdout.splitlines()
    events = list(EventReader(half.events_path).read_new())
    assert only(events, Resumed).changes == ("train.learning_rate: 0.0001 -> 0.0002",)
    assert only(events, Resumed).optimizer_step == 5
    plan = half.read_plan()
    assert plan is not None
    assert plan.setting("train.learning_rate") == 2e-4


@pytest.mark.parametrize(
    ("old", "new", "says", "what"),
    [
        ("seed = 1337", "seed = 1338", "train.seed: 1337 -> 1338", "pairs"),
        ("max_seq_len = 64", "max_seq_len = 80", "data.max_seq_len: 64 -> 80", "pairs"),
        ("shuffle = false", "shuffle = true", "data.shuffle: false -> true", "pairs"),
        *(
            (
                'optimizer = "adamw"',
                f'optimizer = "{optimizer}"',
                f'train.optimizer: "adamw" -> "{optimizer}"',
                "optimizer",
            )
            for optimizer in ("adamw8bit", "muon")
        ),
    ],
)
def test_an_edited_position_is_refused_always(
    half: RunDirectory, old: str, new: str, says: str, what: str
) -> None:
    edit(half.profile_path, old, new)
    before = content(half.path, "lock")
    refused = dpo("resume", half.path, "--allow-changes", cwd=half.path)
    assert refused.returncode == 2
    assert f"  {says}" in refused.stderr.splitlines()
    other = {"pairs": "other pairs", "optimizer": "another optimizer"}[what]
    assert f"cannot continue with {other}" in refused.stderr
    assert content(half.path, "lock") == before


def test_compensation_begins_and_ends_at_a_resume(half: RunDirectory) -> None:
    """Rounding errors are lost before the first resume, and kept until the second one."""

    def kept() -> bool:
        return "compensation.safetensors" in Run(half).files()

    refused = dpo("resume", half.path, "--set", "train.kahan_summation=true", cwd=half.path)
    assert refused.returncode == 2
    assert "  train.kahan_summation: false -> true" in refused.stderr.splitlines()
    assert not kept()
    half.write_profile(
        half.read_profile().replace("kahan_summation = false", "kahan_summation = true")
    )
    change = "train.kahan_summation: false -> true"
    assert workers.work(half, partial(stop_at, 8), "--change", change) == 143
    assert kept()
    compensation = load_file(Run(half).checkpoint / "compensation.safetensors")
    assert any(tensor.any() for tensor in compensation.values())
    half.write_profile(
        half.read_profile().replace("kahan_summation = true", "kahan_summation = false")
    )
    assert workers.work(half) == 0
    assert not kept()
    assert half.is_completed


def test_an_edit_that_makes_no_profile_is_refused(half: RunDirectory) -> None:
    edit(half.profile_path, "learning_rate = 0.0001", 'learning_rate = "fast"')
    before = content(half.path, "lock")
    refused = dpo("resume", half.path, cwd=half.path)
    assert refused.returncode == 2
    assert "train.learning_rate" in refused.stderr
    assert "must be a number" in refused.stderr
    assert content(half.path, "lock") == before


# --- 21: data, weights, tokenizer -------------------------------------------------------------


@pytest.fixture
def copied(shared: Path, tmp_path: Path) -> tuple[RunDirectory, Path]:
    """Run stopped after five steps on its own inputs, and their folder."""
    inputs = tmp_path / "inputs"
    inputs.mkdir()
    shutil.copyfile(shared / "golden/data/train27.jsonl", inputs / "pairs.jsonl")
    shutil.copyfile(shared / "golden/data/train27.jsonl", inputs / "held_out.jsonl")
    shutil.copyfile(shared / "golden/train/seed/full_sft_64.pth", inputs / "full_sft_64.pth")
    shutil.copyfile(shared / "golden/train/seed/full_sft_64.pth", inputs / "reference.pth")
    shutil.copytree(shared / "tokenizer/minimind2", inputs / "tokenizer")
    run = workers.new_run(tmp_path / "runs", arguments(shared) + moved_to(inputs))
    assert workers.work(run, partial(stop_at, 5)) == 143
    return run, inputs


def moved_to(folder: Path) -> list[str]:
    return set_options(
        {
            "model.weights": folder / "full_sft_64.pth",
            "model.reference": folder / "reference.pth",
            "model.tokenizer": folder / "tokenizer",
            "data.data_path": folder / "pairs.jsonl",
            "eval.path": folder / "held_out.jsonl",
            "eval.fraction": 0.0,
        }
    )


def other_weights(path: Path) -> None:
    state = torch.load(path)
    state["model.norm.weight"] = state["model.norm.weight"] * 1.001
    torch.save(state, path)


def other_rows(path: Path) -> None:
    """Change one word of an answer in the last row."""
    text = path.read_text(encoding="utf-8")
    row = json.loads(text.splitlines()[-1])
    row["chosen"][-1]["content"] += "!"
    path.write_text("\n".join([*text.splitlines()[:-1], json.dumps(row)]), encoding="utf-8")


def fewer_rows(path: Path) -> None:
    """Keep so few rows that the run has fewer steps than are done."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text("".join(lines[:4]), encoding="utf-8")


def other_template(folder: Path) -> None:
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["chat_template"] = config["chat_template"].replace("a helpful", "a very helpful")
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


INPUTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "full_sft_64.pth": (other_weights, "model.weights"),
    "reference.pth": (other_weights, "model.reference"),
    "tokenizer": (other_template, "model.tokenizer"),
    "pairs.jsonl": (other_rows, "data.data_path"),
    "held_out.jsonl": (other_rows, "eval.path"),
}


def changed(key: str) -> str:
    return f"{key}: the content is not what the run began with"


def test_each_changed_input_is_named_and_its_old_content_goes_on_elsewhere(
    copied: tuple[RunDirectory, Path], tmp_path: Path
) -> None:
    run, inputs = copied
    safe = tmp_path / "safe"
    shutil.copytree(inputs, safe)
    before = content(run.path, *LOGS)
    for name, (change, key) in INPUTS.items():
        change(inputs / name)
        failed = only(new_events(run, lambda: workers.work(run)), Failed)
        assert failed.exit_code == 1
        assert failed.message == "the run cannot resume: its inputs have changed"
        assert failed.details == (changed(key),)
        assert content(run.path, *LOGS) == before
        if (safe / name).is_dir():
            shutil.copytree(safe / name, inputs / name, dirs_exist_ok=True)
        else:
            shutil.copyfile(safe / name, inputs / name)

    fewer_rows(inputs / "pairs.jsonl")
    failed = only(new_events(run, lambda: workers.work(run)), Failed)
    assert failed.details == (changed("data.data_path"),)
    assert content(run.path, *LOGS) == before

    # All changes at once, through `dpo`; then the old content in another place.
    for name, (change, _) in INPUTS.items():
        change(inputs / name)
    refused = dpo("resume", run.path, cwd=tmp_path)
    assert refused.returncode == 1
    named = [line.strip() for line in refused.stderr.splitlines() if line.startswith("  ")]
    assert named == [changed(key) for _, key in INPUTS.values()]
    assert content(run.path, *LOGS) == before
    edit(run.profile_path, "log_interval = 100", "log_interval = 1")
    resumed = dpo("resume", run.path, *moved_to(safe), "--exact", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert "  changed train.log_interval: 100 -> 1" in resumed.stdout.splitlines()
    events = list(EventReader(run.events_path).read_new())
    assert only(events, Resumed).optimizer_step == 5
    assert f'data.data_path: "{inputs}/pairs.jsonl" -> "{safe}/pairs.jsonl"' in (
        only(events, Resumed).changes
    )
    assert run.is_completed


def test_neutral_edits_and_moved_inputs_end_equal(
    half: RunDirectory, whole: RunDirectory, shared: Path, tmp_path: Path
) -> None:
    """Moved inputs with equal content, and another save interval, give the same result."""
    shutil.copytree(shared / "tokenizer/minimind2", tmp_path / "tokenizer")
    edit(half.profile_path, "save_interval = 3", "save_interval = 1")
    edit(half.profile_path, str(shared / "tokenizer/minimind2"), str(tmp_path / "tokenizer"))
    assert workers.work(half, None, "--exact") == 0
    workers.assert_equal(half, whole)


# --- 22: threads, versions, device ------------------------------------------------------------

ENVIRONMENTS = {
    "threads": ("16", "threads 16 -> 1"),
    "torch": ("2.6.0", "torch 2.6.0 -> "),
    "transformers": ("5.0.0", "transformers 5.0.0 -> "),
    "device": ("cuda:0", "device cuda:0 -> cpu"),
}


def pretend_environment(run: RunDirectory, name: str, value: str) -> None:
    """Write into the plan of `run` that it began with another value of `name`."""
    plan = run.read_plan()
    assert plan is not None
    if name == "device":
        plan = replace(plan, device=value)
    else:
        plan = replace(plan, environment={**plan.environment, name: value})
    run.write_plan(plan)


@pytest.mark.parametrize("what", ENVIRONMENTS)
def test_another_environment_is_told_or_refused(half: RunDirectory, what: str) -> None:
    value, says = ENVIRONMENTS[what]
    pretend_environment(half, what, value)
    before = content(half.path, *LOGS)
    failed = only(new_events(half, lambda: workers.work(half, None, "--exact")), Failed)
    assert failed.exit_code == 1
    assert "a resume here may differ in the last bits" in failed.message
    [detail] = failed.details
    assert detail.startswith(says)
    assert content(half.path, *LOGS) == before

    events = new_events(half, lambda: workers.work(half))
    [alert] = alerts_of(events)
    assert alert.code == "other-environment"
    assert says in alert.message
    assert only(events, Resumed).optimizer_step == 5
    assert half.is_completed


def test_a_run_that_continued_elsewhere_is_never_exact_again(half: RunDirectory) -> None:
    pretend_environment(half, "threads", "16")
    assert workers.work(half, partial(stop_at, 7)) == 143
    failed = only(new_events(half, lambda: workers.work(half, None, "--exact")), Failed)
    assert failed.details == ("threads 16 -> 1",)


def test_dpo_resume_exact_refuses_another_number_of_threads(half: RunDirectory) -> None:
    before = content(half.path, *LOGS)
    refused = dpo("resume", half.path, "--exact", cwd=half.path, OMP_NUM_THREADS="2")
    assert refused.returncode == 1
    assert f"error: {half.name}: a resume here may differ in the last bits" in refused.stderr
    assert "  threads 1 -> 2" in refused.stderr.splitlines()
    assert "leave out exact" in refused.stderr
    assert content(half.path, *LOGS) == before


def test_in_the_same_environment_exact_goes_on(half: RunDirectory, whole: RunDirectory) -> None:
    """Negative control: there is no alert, and the run ends equal."""
    events = new_events(half, lambda: workers.work(half, None, "--exact"))
    assert not alerts_of(events)
    workers.assert_equal(half, whole)
