"""Tests of weights of a run, of a file, and of a Hugging Face directory."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from dpo_cli.errors import DpoError
from dpo_cli.inference.open_model import open_model, open_reference
from dpo_cli.models.loading import build_model, load_model_weights
from dpo_cli.models.spec import as_minimind
from dpo_cli.profile.load import load_profile
from dpo_cli.run.directory import RunDirectory
from dpo_cli.run.events import Evaluated
from dpo_cli.run.models import NamedModel, find_model
from dpo_cli.training.checkpointing import load_weights
from tests.support import workers
from tests.support.cli import Run
from tests.support.small_runs import small_run

OTHER = {"rope_theta": 1e4, "rms_norm_eps": 1e-3}
"""Settings that are in config.json, but not in the weights."""


@pytest.fixture(scope="module")
def run(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    changes = {"eval.fraction": 0.2, "eval.interval": 3, "eval.keep_best": True}
    run = workers.new_run(tmp_path_factory.mktemp("runs"), small_run(shared, **changes))
    assert workers.work(run) == 0
    return run


def test_the_newest_checkpoint_of_a_run(run: RunDirectory) -> None:
    opened = open_model(find_model(run.name, run.path.parent), {})
    assert opened.optimizer_step == 6
    assert opened.title == run.name
    assert opened.model_weights.architecture == Run(run).architecture
    weights = load_weights(Run(run).checkpoint)
    assert opened.model_weights.state.keys() == weights.keys()
    assert all(torch.equal(opened.model_weights.state[name], weights[name]) for name in weights)
    again = open_model(NamedModel(run.path, run), {})
    assert again.model_weights.fingerprint == opened.model_weights.fingerprint


def test_the_best_checkpoint_and_the_reference_of_a_run(run: RunDirectory, shared: Path) -> None:
    best = open_model(NamedModel(run.path, run), {}, best=True)
    evaluations = [event for event in Run(run).events if isinstance(event, Evaluated)]
    lowest = min(evaluations, key=lambda event: event.metrics["loss"])
    assert best.optimizer_step == lowest.step == 3
    reference = open_reference(load_profile(run.profile_path).profile, run.path.parent, run)
    start = load_model_weights(shared / "golden/train/seed/full_sft_64.pth", {})
    assert (
        reference.model_weights.fingerprint == start.fingerprint != best.model_weights.fingerprint
    )
    assert reference.title.endswith("full_sft_64.pth")


def test_a_run_as_the_reference_of_another_profile(run: RunDirectory) -> None:
    # Log-probs of a reference are cached by its fingerprint, so each checkpoint needs its own.
    newest = open_model(NamedModel(run.path, run), {}).model_weights
    profile = load_profile(run.profile_path, [f"model.reference=run:{run.name}"]).profile
    reference = open_reference(profile, run.path.parent, None).model_weights
    assert reference.fingerprint == newest.fingerprint
    kept = open_reference(profile, run.path.parent, run).model_weights
    assert all(torch.equal(kept.state[name], newest.state[name]) for name in newest.state)


def test_a_run_without_a_checkpoint(shared: Path, tmp_path: Path) -> None:
    new = workers.new_run(tmp_path, small_run(shared))
    with pytest.raises(DpoError, match=r"has saved nothing yet"):
        open_model(NamedModel(new.path, new), {})


@pytest.mark.parametrize("case", ["seed/full_sft_64", "head/full_sft_64", "head/full_sft_64_moe"])
def test_a_hugging_face_folder_is_the_model_it_was_made_from(
    golden: Path, tmp_path: Path, case: str
) -> None:
    file = golden / f"arch/{case}.pth"
    model_weights = open_model(find_model(str(file), tmp_path), OTHER).model_weights
    model: PreTrainedModel = build_model(model_weights.architecture, model_weights.state)
    model.save_pretrained(tmp_path)
    opened = open_model(find_model(str(tmp_path), tmp_path), {})
    assert as_minimind(opened.model_weights.architecture, "") == model_weights.architecture
    assert as_minimind(opened.model_weights.architecture, "").rope_theta == 1e4
    assert opened.model_weights.state.keys() == model_weights.state.keys()
    for name, tensor in model_weights.state.items():
        assert torch.equal(opened.model_weights.state[name], tensor.float()), name


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "is not a JSON object"),
        ({"model_type": "llama"}, r"but no model.safetensors"),
    ],
)
def test_folders_that_cannot_be_read(tmp_path: Path, config: object, message: str) -> None:
    text = config if isinstance(config, str) else json.dumps(config)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(DpoError, match=message):
        open_model(find_model(str(tmp_path), tmp_path), {})


def test_only_a_run_has_a_best_checkpoint(golden: Path, tmp_path: Path) -> None:
    file = find_model(str(golden / "arch/seed/full_sft_64.pth"), tmp_path)
    with pytest.raises(DpoError, match="only a run has a best checkpoint"):
        open_model(file, {}, best=True)
