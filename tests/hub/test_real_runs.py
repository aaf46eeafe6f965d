"""Tests of the real `dpo` with data of the Hub: training, killed downloads and old commits."""

from __future__ import annotations

import dataclasses
import subprocess
from pathlib import Path

import pytest

import dpo_cli
from dpo_cli.export.model_card import ExportedWeights, model_card
from dpo_cli.models.spec import architecture_of
from tests.support.cli import DPO, HANG_SECONDS, Run, run_in
from tests.support.cli import environment as own_environment
from tests.support.hub import Hub, environment, running, use_here, wait_until_cached
from tests.support.hub_shapes import ultrafeedback_binarized
from tests.support.small_runs import golden_settings, small_run
from tests.support.written import Row

TRAIN, HELD_OUT = "hf:them/set", "hf:them/set:default/test_prefs"


def dpo(cwd: Path, hub: Hub, *words: str) -> subprocess.CompletedProcess[str]:
    """Run `dpo` in its own process, because huggingface_hub reads its settings once."""
    done = run_in(cwd, [*DPO, *words], **environment(hub.url, cwd / "home"))
    assert done.returncode == 0, done.stderr + done.stdout
    return done


def test_a_run_is_started_killed_resumed_and_its_commit_kept(
    shared: Path, rows: list[Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pyarrow")
    words = small_run(shared, **{"data.data_path": TRAIN, "eval.path": HELD_OUT})
    files = ultrafeedback_binarized(rows)
    with running() as hub:
        commit = hub.push("them/set", files)
        hub.cut["data/train_prefs-00001-of-00002.parquet"] = 1000
        process = subprocess.Popen(
            [*DPO, *words],
            cwd=tmp_path,
            env=own_environment(**environment(hub.url, tmp_path / "home")),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        assert hub.stalled.wait(HANG_SECONDS)
        wait_until_cached(tmp_path / "home", "data/train_prefs-00000*")
        process.kill()
        process.wait()
        assert not (tmp_path / "runs").exists()
        hub.cut.clear()
        hub.go_on.set()
        dpo(tmp_path, hub, *words)
        # The complete file is not downloaded again.
        assert hub.bodies.count("data/train_prefs-00000-of-00002.parquet") == 1
        run = Run.only(tmp_path)
        assert len(run.steps) == 6
        plan = run.directory.read_plan()
        assert plan is not None
        pinned = f"hf:them/set@{commit}:default"
        assert plan.settings["data"]["data_path"] == f"{pinned}/train_prefs"
        assert plan.settings["eval"]["path"] == f"{pinned}/test_prefs"
        # A new commit changes nothing, and the Hub gets no request. A name that a resume sets is
        # pinned like that of a new run.
        hub.push("them/set", ultrafeedback_binarized(rows[::-1]))
        hub.asked.clear()
        place = f"data.data_path=hf:them/set@{commit}"
        words = ["--set", "train.epochs=2", "--set", place, "--allow-changes"]
        dpo(tmp_path, hub, "resume", run.directory.name, *words)
        assert len(run.steps) == 12
        assert not hub.asked
        assert f'"{pinned}/train_prefs"' in run.directory.profile_path.read_text()
        told = dpo(tmp_path, hub, "convert", TRAIN, "--to", "pairs.jsonl").stdout
        newer = hub.repositories["datasets", "them/set"].branches["main"]
        assert told.splitlines() == [
            "wrote pairs.jsonl: 24 pairs in the format trl, read as UltraFeedback-binarized,"
            f" Parquet (2 files); split train_prefs of default, commit {newer[:8]}",
            "columns not written: 'prompt_id' (24 rows), 'messages' (24 rows), 'score_chosen'"
            " (24 rows), 'score_rejected' (24 rows)",
        ]
        # Evaluations, checks and pages of pairs accept the same names.
        monkeypatch.chdir(tmp_path)
        use_here(monkeypatch, hub.url, tmp_path / "home")
        by_name, by_file = (
            dpo_cli.evaluate(run.directory.path, data).models[0].groups
            for data in (TRAIN, "pairs.jsonl")
        )
        assert by_name == by_file
        settings = golden_settings(shared, "seed", False, **{"data.data_path": TRAIN})
        checked = dpo_cli.check("dense", settings, quick=True)
        (format,) = (each for each in checked.findings if each.code == "format")
        assert format.subject == TRAIN
        assert format.message.endswith(f"; split train_prefs of default, commit {newer[:8]}")
        # The card of an export names the data set, once, and a base model of the Hub.
        weights = ExportedWeights(architecture_of(plan.model.shape), "float32", "nearest", None, 6)
        assert "\ndatasets:\n- them/set\npipeline" in model_card(run.directory, plan, weights)
        model = {**plan.settings["model"], "weights": "hf:them/base@main"}
        renamed = dataclasses.replace(plan, settings={**plan.settings, "model": model})
        card = model_card(run.directory, renamed, weights)
        assert card.startswith("---\nbase_model: them/base\ndatasets:\n- them/set\npipeline")
        assert "# base, trained with direct preference optimization" in card
        assert str(tmp_path) not in card
