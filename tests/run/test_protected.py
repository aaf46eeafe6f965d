"""Tests of the protection of a run's inputs from commands that replace files."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from dpo_cli import app
from dpo_cli.errors import UsageError
from dpo_cli.run.directory import RunDirectory
from dpo_cli.run.protected import inputs_of_run, require_free_of_inputs

Cli = Callable[..., tuple[int, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDirectory:
    """Run of a Hugging Face directory, with a data file, a data folder, and an earlier export."""
    monkeypatch.chdir(tmp_path)
    for file in ("model/config.json", "model/model.safetensors", "model/tokenizer.json"):
        _write(Path(file))
    for file in ("data/a.jsonl", "held/b.jsonl", "other/model.safetensors", "other/config.json"):
        _write(Path(file))
    profile = (
        f'[model]\nweights = "{tmp_path}/model"\ntokenizer = "{tmp_path}/model"\n'
        f'[data]\ndata_path = "{tmp_path}/data/a.jsonl"\n[eval]\npath = "{tmp_path}/held"\n'
    )
    run = RunDirectory.create(tmp_path / "runs", "mine", profile)
    _write(run.checkpoints_path / "step-1/weights.safetensors")
    _write(run.path / "rlhf_512.pth")
    os.symlink("model", "link")
    os.symlink("../data/a.jsonl", "other/pairs.jsonl")
    return run


def _write(path: Path) -> None:
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text("{}")


@pytest.mark.parametrize(
    ("destination", "message"),
    [
        ("model", "model is model.weights of this run"),
        ("other/../model/", "model is model.weights of this run"),
        ("link", "link is model.weights of this run"),
        ("model/model.safetensors", "model.safetensors is a file of model.weights of this run"),
        ("data", r"data contains data.data_path of this run \(data/a.jsonl\)"),
        ("other/pairs.jsonl", "pairs.jsonl is data.data_path of this run"),
        ("held/b.jsonl", "b.jsonl is a file of eval.path of this run"),
        (".", "contains model.weights of this run"),
        ("RUN/profile.toml", "profile.toml is a file of this run"),
        ("RUN/checkpoints/step-1/weights.safetensors", "is a file of this run"),
    ],
)
def test_inputs_are_not_replaced(run: RunDirectory, destination: str, message: str) -> None:
    path = Path(destination.replace("RUN", str(run.path)))
    with pytest.raises(UsageError, match=message) as caught:
        require_free_of_inputs(path, inputs_of_run(run), "--to")
    assert caught.value.remedy.startswith("Choose another path, for example --to ")


@pytest.mark.parametrize("destination", ["new", "other", "model-dpo", "RUN/rlhf_512.pth", "held/c"])
def test_other_paths_are_free(run: RunDirectory, destination: str) -> None:
    path = Path(destination.replace("RUN", str(run.path)))
    require_free_of_inputs(path, inputs_of_run(run), "--to")


def test_a_directory_with_a_link_to_an_input_is_not_replaced(run: RunDirectory) -> None:
    text = run.read_profile().replace("data/a.jsonl", "other/pairs.jsonl")
    run.write_profile(text)
    with pytest.raises(UsageError, match=r"other contains data.data_path of this run"):
        require_free_of_inputs(Path("other"), inputs_of_run(run), "--to")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("merge", "model", "other", "--to", "other", "--force"), "other is a model of this"),
        (("merge", "mine", "other", "--to", "data", "--force"), "contains data.data_path of this"),
        (("report", "mine", "--out", "data/a.jsonl"), "a.jsonl is data.data_path of this run"),
        (("convert", "held", "--to", "held/b.jsonl", "--force"), "would be a part of the data"),
        (("convert", "link.jsonl", "--to", "data/a.jsonl", "--force"), "would be a part of"),
    ],
)
def test_commands_do_not_replace_their_inputs(
    run: RunDirectory,
    words: tuple[str, ...],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    os.symlink("data/a.jsonl", "link.jsonl")
    assert app.main(list(words)) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert Path("data/a.jsonl").read_text() == Path("held/b.jsonl").read_text() == "{}"
