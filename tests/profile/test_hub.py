"""Tests of models on the Hub, with a local server."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dpo_cli.profile import hub
from tests.support.cli import run_in
from tests.support.hub import Hub, environment, running

FILES = {
    name: f"{name} of the tests".encode()
    for name in (
        *("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"),
        *("modeling.py", "consolidated.safetensors", "pytorch_model.bin"),
    )
}


@pytest.fixture
def our_hub() -> Iterator[Hub]:
    with running() as hub:
        yield hub


def fetch(folder: Path, url: str, *names: str) -> list[str]:
    """Resolve each name in a process that uses the local Hub."""
    code = (
        "import sys; from pathlib import Path; from dpo_cli.errors import UsageError\n"
        "from dpo_cli.profile.inputs import check_inputs, resolve_weights\n"
        "from dpo_cli.profile.load import load_profile\n"
        "for name in sys.argv[1:]:\n"
        "    loaded = load_profile(Path('my.toml'), [f'model.weights={name}'])\n"
        "    try: check_inputs(loaded)\n"
        "    except UsageError as error: print(*error.details)\n"
        "    else: print(resolve_weights(loaded.profile, 'weights'))\n"
    )
    (folder / "dpo.jsonl").write_text("x")
    (folder / "my.toml").write_text('data.data_path = "dpo.jsonl"\n')
    changes = environment(url, folder / "home")
    done = run_in(folder, [sys.executable, "-c", code, *names], **changes)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_model_is_downloaded_once_without_code(our_hub: Hub, folder: Path) -> None:
    older = our_hub.push("them/tiny", {**FILES, "config.json": b"older"}, kind="models")
    commit = our_hub.push("them/tiny", FILES, kind="models")
    path, again, path_of_older = fetch(
        folder, our_hub.url, "hf:them/tiny", "hf:them/tiny@main", f"hf:them/tiny@{older}"
    )
    assert again == path
    assert Path(path_of_older).name == older
    assert {file.name for file in Path(path).iterdir()} == {
        *("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
    }
    for name in ("hf:them/tiny", "hf:them/tiny@main"):
        assert hub.at_commit(name, Path(path)) == f"hf:them/tiny@{commit}"
    # From here on no network is needed for this commit.
    our_hub.asked.clear()
    assert fetch(folder, our_hub.url, f"hf:them/tiny@{commit}") == [path]
    assert not our_hub.asked


def test_missing_on_the_hub(our_hub: Hub, folder: Path) -> None:
    our_hub.push("them/tiny", FILES, kind="models")
    our_hub.push("them/gated", FILES, kind="models")
    our_hub.repositories["models", "them/gated"].is_gated = True
    names = ("hf:them/tiny@nowhere", "hf:them/none", "hf:them//tiny", "hf:them/gated")
    lines = fetch(folder, our_hub.url, *names)
    expected = [
        "them/tiny has no revision nowhere; use a branch",
        "them/none does not exist on the Hub, or is private; check the name",
        "'them//tiny' is not a model name on the Hub; write hf:ORG/NAME",
        "them/gated is a gated model; request access on its page, then log in: hf auth login",
    ]
    for line, reason in zip(lines, expected, strict=True):
        assert line.startswith(f"--set  model.weights: {reason}")


def test_without_a_network(folder: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        (line,) = fetch(folder, f"http://127.0.0.1:{unused.getsockname()[1]}", "hf:them/tiny")
    assert (
        "is not, or only partly, in this machine's cache, and the Hub cannot be reached; " in line
    )
    assert "copy the directory here" in line
