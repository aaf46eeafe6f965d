"""Tests of trackers in commands: one line if a tracker is missing, and real tracked runs."""

from __future__ import annotations

import json
import re
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from dpo_cli.run.directory import RunDirectory
from dpo_cli.run.events import Alert, Evaluated
from dpo_cli.run.tracking import registry
from tests.commands.conftest import Cli
from tests.support import cli
from tests.support.cli import Run, set_options
from tests.support.small_runs import golden_run
from tests.support.tracking_readers import history, scalars, single
from tests.support.tracking_streams import private_words

LINE = "track.use_wandb: Weights & Biases is not installed"
REMEDY = "Run pip install 'wandb>=0.31' in the environment of dpo."
TRACKED = {"track.use_tensorboard": True, "track.use_wandb": True}


@pytest.fixture
def not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Empty working directory, and a folder that W&B has left."""
    monkeypatch.setattr(registry, "find_spec", lambda name: ModuleSpec(name, None))


@pytest.mark.usefixtures("not_installed")
class TestNotInstalled:
    def test_a_run_is_refused_before_it_begins(self, dpo: Cli, directory: Path) -> None:
        for verb in ("train", "sweep"):
            grid = ["--grid", "dpo.beta=[1,2]"] if verb == "sweep" else []
            code, out, err = dpo(verb, "mine.toml", *grid, "--set", "track.use_wandb=true")
            assert (code, out) == (2, "")
            assert err.splitlines() == [f"error: {LINE}", f"help: {REMEDY}"]
        assert not (directory / "runs").exists()

    def test_a_resume_is_refused_before_it_begins(self, dpo: Cli, directory: Path) -> None:
        profile = (directory / "mine.toml").read_text().replace('"./', f'"{directory}/')
        profile = profile.replace('"tokenizer"', f'"{directory}/tokenizer"')
        profile = profile.replace('"pairs', f'"{directory}/pairs')
        run = RunDirectory.create(Path("runs"), "mine", profile)
        code, _, err = dpo("resume", "mine", "--set", "track.use_wandb=true")
        assert code == 2
        assert LINE in err
        assert "track" not in run.read_profile()

    def test_check_reports_a_missing_tracker(self, dpo: Cli, directory: Path) -> None:
        code, out, _ = dpo("check", "mine.toml", "--json", "--set", "track.use_wandb=true")
        found = [f for f in json.loads(out)["findings"] if f["code"] == "tracker-missing"]
        assert code == 1
        assert [(f["subject"], f["remedy"]) for f in found] == [("track.use_wandb", REMEDY)]

    def test_a_profile_without_trackers_needs_no_package(self, dpo: Cli, directory: Path) -> None:
        _, out, _ = dpo("check", "mine.toml", "--json")
        assert "track" not in out


def test_a_stopped_and_resumed_run_is_tracked_as_one(shared: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="needs the extra tensorboard")
    pytest.importorskip("wandb", reason="needs the extra wandb")
    changes = {"train.epochs": 2, "eval.interval": 3, "eval.num_samples": 1, **TRACKED}
    home = {"HOME": str(tmp_path), "NETRC": str(tmp_path / "netrc"), "WANDB_API_KEY": ""}
    first = cli.dpo(*golden_run(shared, "seed", False, **changes), cwd=tmp_path, **home)
    assert first.returncode == 0, first.stderr
    longer = set_options({"train.epochs": 3})
    second = cli.dpo("resume", *longer, "--allow-changes", cwd=tmp_path, **home)
    assert second.returncode == 0, second.stderr
    run = Run.only(tmp_path)
    upload = re.findall(r"help: Upload them: (wandb sync \S+)", second.stdout)
    assert len(upload) == 1
    assert (tmp_path / upload[0].split()[2]).is_dir()
    assert {e.code for e in run.events if isinstance(e, Alert)} >= {"wandb-offline"}
    _compare_tensorboard(run)
    _compare_wandb(run)
    private = private_words(tmp_path, shared, "train27", "full_sft", "minimind2/")
    for file in [
        *(run.directory.path / "tensorboard").rglob("*"),
        *(run.directory.path / "wandb").rglob("*"),
    ]:
        content = file.name.encode() + (file.read_bytes() if file.is_file() else b"")
        for word in private:
            assert word not in content, (file, word)


def _compare_tensorboard(run: Run) -> None:
    read = scalars(run.directory)
    margins = [(s.optimizer_step, single(s.metrics["rewards/margins"])) for s in run.steps]
    assert read["train/rewards/margins"] == margins
    assert read["eval/loss"] == [
        (e.optimizer_step, single(e.metrics["loss"])) for e in _evaluations(run)
    ]


def _compare_wandb(run: Run) -> None:
    read = history(run.directory)
    losses = {row["_step"]: row["train/loss"] for row in read if "train/loss" in row}
    assert losses == {s.optimizer_step: s.metrics["loss"] for s in run.steps}
    held_out = {row["_step"]: row["eval/loss"] for row in read if "eval/loss" in row}
    assert held_out == {e.optimizer_step: e.metrics["loss"] for e in _evaluations(run)}
    assert len(read) == len({row["_step"] for row in read})


def _evaluations(run: Run) -> list[Evaluated]:
    return [event for event in run.events if isinstance(event, Evaluated)]
