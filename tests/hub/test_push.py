"""Tests of uploads of exported models, with a local server."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dpo_cli import DpoError, Run, UsageError, app
from dpo_cli.export.model_card import MARK
from dpo_cli.run.directory import RunDirectory
from tests.support import workers
from tests.support.cli import DPO, HANG_SECONDS
from tests.support.cli import environment as own_environment
from tests.support.family_runs import SECONDS
from tests.support.hub import READ_TOKEN, TOKEN, Files, Hub, environment, running, use_here
from tests.support.small_runs import golden_run

NAME = "me/model"


@pytest.fixture(scope="module")
def trained(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """Run with held-out pairs, without an export."""
    root = tmp_path_factory.mktemp("pushed-runs")
    changes = {"train.epochs": 1, "eval.interval": 0}
    run = workers.new_run(root / "runs", golden_run(shared, "seed", False, **changes))
    assert workers.work(run, seconds=SECONDS) == 0
    return run


@pytest.fixture(scope="module")
def exported(trained: RunDirectory) -> RunDirectory:
    """Return the run after its first push, which has exported it."""
    with running() as hub, pytest.MonkeyPatch.context() as patch:
        use_here(patch, hub.url, trained.path.parent / "home")
        patch.setenv("HF_TOKEN", TOKEN)
        report = Run(trained).push(NAME)
        assert report.is_new_export
        assert report.path == trained.path / "hub"
        assert report.newest_step == report.optimizer_step
        assert hub.repositories["models", NAME].is_private
        assert files_of(hub, NAME) == contents(report.path)
        # The second push sends no file that the Hub has.
        again = Run(trained).push(NAME)
        assert not again.is_new_export
        assert len(hub.put) == len(set(hub.put)) == 2
        assert (
            again.size_bytes == report.size_bytes == sum(map(len, contents(report.path).values()))
        )
    return trained


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with running() as server:
        use_here(monkeypatch, server.url, tmp_path / "home")
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server


def files_of(hub: Hub, name: str) -> Files:
    repository = hub.repositories["models", name]
    files = dict(repository.commits[repository.branches["main"]])
    files.pop(".gitattributes", None)
    return files


def contents(folder: Path) -> Files:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def test_nothing_but_the_export_is_sent(exported: RunDirectory, hub: Hub, tmp_path: Path) -> None:
    source = tmp_path / "exported"
    shutil.copytree(exported.path / "hub", source)
    (source / "notes.txt").write_text("notes of mine")
    report = Run(exported).push(NAME, source, public=True)
    assert not hub.repositories["models", NAME].is_private
    assert files_of(hub, NAME).keys() == {*report.files} == contents(exported.path / "hub").keys()
    everything = b"\n".join([*hub.received, *hub.stored.values(), *map(str.encode, hub.messages)])
    plan = exported.read_plan()
    assert plan is not None
    for secret in (exported.name, exported.path, tmp_path, Path.home(), socket.gethostname()):
        # A home directory such as / is part of every text.
        text = str(secret).removeprefix("/")
        assert not text or len(text) < 5 or text.encode() not in everything, secret
    assert b"notes of mine" not in everything
    card = files_of(hub, NAME)["README.md"].decode()
    assert plan.fingerprints["weights"] in card
    for part in ("(95 %: ", "The loss changed by ", "rounded to nearest", "dpo train profile.toml"):
        assert part in card, part
    assert "of them differ from the starting weights" in card
    assert "dpo export --format hf --dtype float16 --rounding nearest\n" in card


def test_a_file_of_minimind(exported: RunDirectory, hub: Hub, tmp_path: Path) -> None:
    file = tmp_path / "rlhf_64.pth"
    Run(exported).export(file)
    report = Run(exported).push(NAME, file)
    files = files_of(hub, NAME)
    assert files.keys() == {*report.files} == {"rlhf_64.pth", "README.md"}
    assert files["rlhf_64.pth"] == file.read_bytes()
    card = files["README.md"].decode()
    assert MARK in card
    assert "library_name" not in card
    assert "dpo export --format pth" in card
    assert "python eval_model.py --model_mode 2 --out_dir out --hidden_size 64" in card
    assert "An answer ends with `" in card
    # The next push of a directory is another form of the same model.
    Run(exported).push(NAME)
    assert "rlhf_64.pth" in files_of(hub, NAME)


def test_an_obsolete_file_is_removed_and_others_stay(exported: RunDirectory, hub: Hub) -> None:
    own = contents(exported.path / "hub")
    others = {"model.gguf": b"other", "chat_template.jinja": b"old", "vocab.txt": b"old"}
    hub.push(NAME, {**others, "README.md": f"{MARK} old".encode()}, kind="models")
    hub.repositories["models", NAME].is_private = True
    Run(exported).push(NAME)
    kept = {name: text for name, text in others.items() if name == "model.gguf"}
    assert files_of(hub, NAME) == {**kept, **own}


def test_an_interrupted_push_goes_on(
    exported: RunDirectory,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The process is killed while it sends the weights, after the tokenizer."""
    source = exported.path / "hub"
    with running() as hub:
        hub.stall_at = (source / "model.safetensors").stat().st_size
        hub_variables = environment(hub.url, tmp_path / "home")
        process = subprocess.Popen(
            [*DPO, "push", str(exported.path), NAME],
            cwd=tmp_path,
            env=own_environment(**hub_variables, HF_TOKEN=TOKEN),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        assert hub.stalled.wait(SECONDS)
        until = time.monotonic() + HANG_SECONDS
        while len(hub.stored) < 1:
            assert time.monotonic() < until
            time.sleep(0.05)
        process.kill()
        process.wait()
        assert not files_of(hub, NAME)
        assert hub.repositories["models", NAME].is_private
        hub.stall_at = 0
        hub.go_on.set()
        first = [*hub.put]
        use_here(monkeypatch, hub.url, tmp_path / "home")
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        assert app.main(["push", str(exported.path), NAME]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[0] == f"pushing {exported.path} to {NAME}"
        assert lines[1].startswith(f"pushed hub: {len(contents(source))} files, ")
        assert ", private, after step " in lines[1]
        assert lines[2:] == [f"{hub.url}/{NAME}"]
        assert files_of(hub, NAME) == contents(source)
        (weights,) = hub.put[len(first) :]
        assert hub.stored[weights] == (source / "model.safetensors").read_bytes()


def refusal(run: RunDirectory, *arguments: str | Path, public: bool = False) -> DpoError:
    name, *source = arguments
    with pytest.raises(DpoError) as caught:
        Run(run).push(str(name), *source, public=public)
    assert "\n" not in caught.value.message + caught.value.remedy
    return caught.value


def test_wrong_names(exported: RunDirectory, hub: Hub) -> None:
    for name in ("model", "a/b/c", "me/..", "me/"):
        error = refusal(exported, name)
        assert isinstance(error, UsageError)
        assert "is not a model name" in error.message
    assert not hub.asked


def test_logins_and_rights(
    exported: RunDirectory, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "you may not write to them/model" in refusal(exported, "them/model").message
    monkeypatch.setenv("HF_TOKEN", READ_TOKEN)
    error = refusal(exported, NAME)
    assert error.message == f"you may not write to {NAME}"
    assert error.remedy.endswith("who may write for me: hf auth login")
    monkeypatch.setenv("HF_TOKEN", "hf_old")
    assert refusal(exported, NAME).message == "the Hub does not accept your login"
    monkeypatch.delenv("HF_TOKEN")
    error = refusal(exported, NAME)
    assert error.message == "you are not logged in to the Hub"
    assert error.remedy.startswith("Log in: hf auth login.")
    assert not hub.repositories


def test_no_network(
    exported: RunDirectory, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_here(monkeypatch, hub.url, tmp_path / "home", offline=True)
    assert "HF_HUB_OFFLINE=1" in refusal(exported, NAME).message
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        use_here(monkeypatch, f"http://127.0.0.1:{closed.getsockname()[1]}", tmp_path / "home")
        assert "the Hub cannot be reached" in refusal(exported, NAME).message


def test_taken_names(exported: RunDirectory, hub: Hub) -> None:
    hub.push(NAME, {"README.md": b"a card", "model.safetensors": b"x"}, kind="models")
    repository = hub.repositories["models", NAME]
    error = refusal(exported, NAME)
    assert error.message == f"{NAME} exists and is public: everybody would see the model"
    assert "dpo push did not write it" in refusal(exported, NAME, public=True).message
    repository.is_private = True
    error = refusal(exported, NAME)
    assert error.message == f"{NAME} exists, and dpo push did not write it"
    assert error.remedy == "Choose another name, or delete the repository on its page."
    assert f"{NAME} is private" in refusal(exported, NAME, public=True).message
    assert len(repository.commits) == 1


def test_wrong_sources(exported: RunDirectory, hub: Hub, tmp_path: Path) -> None:
    assert "no such file" in refusal(exported, NAME, tmp_path / "none").message
    assert "neither a Hugging Face directory" in refusal(exported, NAME, tmp_path).message
    other = tmp_path / "other.pth"
    other.write_bytes(b"weights")
    assert "is not an export of" in refusal(exported, NAME, other).message
    source = tmp_path / "exported"
    shutil.copytree(exported.path / "hub", source)
    settings = json.loads((source / "tokenizer_config.json").read_text())
    settings["name_or_path"] = "/home/somebody/models/x"
    (source / "tokenizer_config.json").write_text(json.dumps(settings))
    error = refusal(exported, NAME, source)
    assert "name_or_path = '/home/somebody/models/x' is a path of this machine" in error.message
    del settings["name_or_path"]
    (source / "tokenizer_config.json").write_text(json.dumps(settings))
    (source / "README.md").write_text("my own card")
    assert "is not the model card that dpo export wrote" in refusal(exported, NAME, source).message
    assert ("models", NAME) not in hub.repositories
