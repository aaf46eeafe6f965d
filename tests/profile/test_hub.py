"""Models on the Hub, with a local server in its place."""

from __future__ import annotations

import hashlib
import json
import socket
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from dpo_cli.profile import hub
from tests.support.cli import run_in

COMMIT, OLDER = "a" * 40, "b" * 40
FILES = {
    name: f"{name} of the tests".encode()
    for name in (
        *("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"),
        *("modeling.py", "consolidated.safetensors", "pytorch_model.bin"),
    )
}


class OneModel(BaseHTTPRequestHandler):
    """Hub with the model `them/tiny` only."""

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def log_message(self, format: str, *arguments: object) -> None:
        self.server.asked.append(self.path)  # type: ignore[attr-defined]

    def _answer(self, *, with_body: bool) -> None:
        parts = self.path.partition("?")[0].strip("/").split("/")
        headers, body, status = {}, b"{}", 200
        if parts[:4] == ["api", "models", "them", "tiny"]:
            revision = parts[5]
            if revision not in ("main", COMMIT, OLDER):
                status, headers = 404, {"X-Error-Code": "RevisionNotFound"}
            elif parts[4] == "tree":
                listed = [{"type": "file", "path": name, "size": len(content), "oid": name}
                          for name, content in FILES.items()]  # fmt: skip
                body = json.dumps(listed).encode()
            else:
                sha = OLDER if revision == OLDER else COMMIT
                body = json.dumps({"id": "them/tiny", "sha": sha, "siblings": []}).encode()
        elif parts[:3] == ["them", "tiny", "resolve"] and parts[4] in FILES:
            body = FILES[parts[4]]
            etag = hashlib.sha256(body).hexdigest()
            headers = {"ETag": f'"{etag}"', "X-Repo-Commit": parts[3]}
        else:
            status, headers = 404, {"X-Error-Code": "RepoNotFound"}
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body)


@pytest.fixture
def our_hub() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), OneModel)
    server.asked = []  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def fetch(folder: Path, port: int, *names: str) -> list[str]:
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
    changes = {"HF_ENDPOINT": f"http://127.0.0.1:{port}", "HF_HOME": str(folder / "home")}
    done = run_in(folder, [sys.executable, "-c", code, *names], **changes, HF_HUB_OFFLINE="0")
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_model_is_downloaded_once_without_code(
    our_hub: ThreadingHTTPServer, folder: Path
) -> None:
    path, again, older = fetch(
        folder, our_hub.server_port, "hf:them/tiny", "hf:them/tiny@main", f"hf:them/tiny@{OLDER}"
    )
    assert again == path
    assert Path(older).name == OLDER
    assert {file.name for file in Path(path).iterdir()} == {
        *("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
    }
    for name in ("hf:them/tiny", "hf:them/tiny@main"):
        assert hub.at_commit(name, Path(path)) == f"hf:them/tiny@{COMMIT}"
    # From now on no network is needed for this commit.
    our_hub.asked.clear()  # type: ignore[attr-defined]
    assert fetch(folder, our_hub.server_port, f"hf:them/tiny@{COMMIT}") == [path]
    assert not [place for place in our_hub.asked if "them" in place]  # type: ignore[attr-defined]


def test_missing_on_the_hub(our_hub: ThreadingHTTPServer, folder: Path) -> None:
    lines = fetch(
        folder, our_hub.server_port, "hf:them/tiny@nowhere", "hf:them/none", "hf:them//tiny"
    )
    expected = [
        "them/tiny has no revision nowhere",
        "them/none does not exist on the Hub, or is private",
        "'them//tiny' is not a model name on the Hub",
    ]
    for line, reason in zip(lines, expected, strict=True):
        assert line.startswith(f"--set  model.weights: {reason}; ")


def test_without_a_network(folder: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        (line,) = fetch(folder, unused.getsockname()[1], "hf:them/tiny")
    assert "them/tiny is not in this machine's cache, and the Hub cannot be reached; " in line
    assert "copy the directory here" in line
