"""Local stand-in of the Hugging Face Hub: branches, commits, gates and interrupted downloads."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from tests.support.cli import HANG_SECONDS

Files = Mapping[str, bytes]
USER, TOKEN, READ_TOKEN = "me", "hf_write", "hf_read"
"""Name of the user, and tokens with and without permission to write."""
_REGISTRY = "/api/agent-harnesses"
"""Address that huggingface_hub requests once a day, for its own user agent."""


def commit_of(files: Files) -> str:
    """Return the name of the commit with these files."""
    contents = [(name, hashlib.sha256(content).hexdigest()) for name, content in files.items()]
    return hashlib.sha1(repr(sorted(contents)).encode()).hexdigest()


@dataclass
class Repository:
    """Commits of a repository by name, and the commit of each branch."""

    commits: dict[str, Files] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    is_gated: bool = False
    is_private: bool = False

    def push(self, files: Files, branch: str = "main") -> str:
        """Add a commit to a branch, and return its name."""
        commit = commit_of(files)
        self.commits[commit] = files
        self.branches[branch] = commit
        return commit


class Hub:
    """Server on the loopback.

    Attributes:
        repositories: by kind ("models" or "datasets") and ORG/NAME.
        asked: paths of all requests about repositories.
        cut: file names by the number of bytes after which the server stalls until `go_on` is set.
        lost: file names by the number of bytes after which the connection ends, once.
        ranges: wanted ranges of bytes, by the file.
        stalled: set as soon as a download stalls.
        bodies: names of the files that were sent completely.
        stored: uploaded large files by SHA-256, also those that no commit has yet.
        put: SHA-256 of each large file whose upload began, in this order.
        stall_at: size of the large files whose upload stalls until `go_on` is set.
        received: text of all requests that upload, headers included.
        messages: messages of the commits.
    """

    def __init__(self) -> None:
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.asked: list[str] = []
        self.cut: dict[str, int] = {}
        self.lost: dict[str, int] = {}
        self.ranges: list[tuple[str, str]] = []
        self.stalled, self.go_on = threading.Event(), threading.Event()
        self.bodies: list[str] = []
        self.stored: dict[str, bytes] = {}
        self.put: list[str] = []
        self.stall_at = 0
        self.received: list[bytes] = []
        self.messages: list[str] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._server.hub = self  # type: ignore[attr-defined]
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def push(self, name: str, files: Files, *, kind: str = "datasets", branch: str = "main") -> str:
        """Add a commit to a repository, which is created if it is new."""
        repository = self.repositories.setdefault((kind, name), Repository())
        return repository.push(files, branch)

    def close(self) -> None:
        self.go_on.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@contextmanager
def running() -> Iterator[Hub]:
    hub = Hub()
    try:
        yield hub
    finally:
        hub.close()


def environment(url: str, home: Path, *, offline: bool = False) -> dict[str, str]:
    """Return the variables with which a process uses the stand-in, with a cache in `home`.

    The stand-in has no Xet storage, whose servers are others than the Hub's.
    """
    return {
        "HF_ENDPOINT": url,
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": str(int(offline)),
        "HF_HUB_DISABLE_XET": "1",
    }


def use_here(
    monkeypatch: pytest.MonkeyPatch, url: str, home: Path, *, offline: bool = False
) -> None:
    """Make this process use the stand-in, even if huggingface_hub is already imported."""
    from huggingface_hub import constants

    from dpo_cli.hub.datasets import fetch_data, find_data

    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
    forget = [fetch_data.cache_clear, find_data.cache_clear]
    for clear in forget:
        clear()


def cached(home: Path, pattern: str) -> list[Path]:
    """Paths of the files of data sets in the cache that match a pattern."""
    return list(home.glob(f"hub/datasets--*/snapshots/*/{pattern}"))


def wait_until_cached(home: Path, pattern: str) -> None:
    until = time.monotonic() + HANG_SECONDS
    while not cached(home, pattern):
        assert time.monotonic() < until
        time.sleep(0.05)


class _Handler(BaseHTTPRequestHandler):
    @property
    def hub(self) -> Hub:
        hub: Hub = self.server.hub  # type: ignore[attr-defined]
        return hub

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_POST(self) -> None:
        content = self._receive()
        words = [unquote(word) for word in self.path.partition("?")[0].strip("/").split("/")]
        status, answer = self._post(words, content)
        self._reply(status, json.dumps(answer).encode())

    def do_PUT(self) -> None:
        """Receive a large file."""
        digest = self.path.rpartition("/")[2]
        self.hub.put.append(digest)
        if int(self.headers["Content-Length"]) == self.hub.stall_at:
            self.rfile.read(self.hub.stall_at // 2)
            self.hub.stalled.set()
            self.hub.go_on.wait()
            self.close_connection = True
            return
        content = self._receive()
        assert hashlib.sha256(content).hexdigest() == digest
        self.hub.stored[digest] = content
        self._reply(200, b"")

    def _receive(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            content = b""
            while size := int(self.rfile.readline(), 16):
                content += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.hub.received += [str(self.headers).encode(), content]
        return content

    def _reply(self, status: int, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    @property
    def _token(self) -> str:
        return str(self.headers.get("Authorization", "")).removeprefix("Bearer ")

    def _post(self, words: list[str], content: bytes) -> tuple[int, Any]:
        """Answer a request that uploads."""
        if words == ["api", "validate-yaml"]:
            return 200, {"errors": [], "warnings": []}
        if self._token != TOKEN:
            return 403, {"error": "no permission to write"}
        if words == ["api", "repos", "create"]:
            wanted = json.loads(content)
            name = f"{wanted['organization']}/{wanted['name']}"
            if wanted["organization"] != USER:
                return 403, {"error": "no rights in this namespace"}
            if ("models", name) in self.hub.repositories:
                return 409, {"error": "it exists"}
            self.hub.push(name, {".gitattributes": b"*.safetensors filter=lfs"}, kind="models")
            # Releases before 2.0 write "private" instead.
            is_private = wanted.get("visibility") == "private" or wanted.get("private") is True
            self.hub.repositories["models", name].is_private = is_private
            return 200, {"url": f"{self.hub.url}/{name}"}
        if words[-1] == "batch":
            objects = json.loads(content)["objects"]
            for each in objects:
                if each["oid"] not in self.hub.stored:
                    upload = {"href": f"{self.hub.url}/lfs/{each['oid']}", "header": {}}
                    each["actions"] = {"upload": upload}
            return 200, {"transfer": "basic", "objects": objects}
        name = "/".join(words[2:4])
        repository = self.hub.repositories["models", name]
        files = dict(repository.commits[repository.branches["main"]])
        if words[4] == "preupload":
            return 200, {"files": [_upload_mode(each) for each in json.loads(content)["files"]]}
        assert words[4] == "commit"
        for line in content.splitlines():
            operation = json.loads(line)
            value = operation["value"]
            match operation["key"]:
                case "header":
                    self.hub.messages.append(value["summary"])
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                    self.hub.received.append(files[value["path"]])
                case "lfsFile":
                    files[value["path"]] = self.hub.stored[value["oid"]]
                case "deletedFile":
                    del files[value["path"]]
        commit = repository.push(files)
        return 200, {"commitUrl": f"{self.hub.url}/{name}/commit/{commit}", "commitOid": commit}

    def log_message(self, format: str, *arguments: object) -> None:
        if self.path != _REGISTRY:
            self.hub.asked.append(self.path)

    def _answer(self, *, with_body: bool) -> None:
        words = [unquote(word) for word in self.path.partition("?")[0].strip("/").split("/")]
        if self.path == _REGISTRY:
            status, headers, body, name = 404, {}, b"{}", ""
        elif words == ["api", "whoami-v2"]:
            is_known = self._token in (TOKEN, READ_TOKEN)
            status, headers, body, name = 200 if is_known else 401, {}, b'{"name": "me"}', ""
        elif words[0] == "api":
            status, headers, body, name = *self._api(words[1], words[2:]), ""
        else:
            kind = "datasets" if words[0] == "datasets" else "models"
            words = words[1:] if kind == "datasets" else words
            name = "/".join(words[4:])
            status, headers, body = self._file(kind, words)
        # An interrupted download continues.
        if status == 200 and (wanted := self.headers.get("Range")):
            self.hub.ranges.append((name, wanted))
            start = int(wanted.removeprefix("bytes=").partition("-")[0])
            headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
            body, status = body[start:], 206
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if with_body:
            self._send(name, body)

    def _send(self, name: str, body: bytes) -> None:
        if (lost := self.hub.lost.pop(name, None)) is not None:
            self.wfile.write(body[:lost])
            self.close_connection = True
            return
        cut = self.hub.cut.get(name)
        if cut is not None:
            self.wfile.write(body[:cut])
            self.wfile.flush()
            self.hub.stalled.set()
            self.hub.go_on.wait()
            body = body[cut:]
        self.wfile.write(body)
        self.hub.bodies += [name] if name else []

    def _find(self, kind: str, name: str, revision: str) -> tuple[str, Repository | None, str]:
        """Return commit and repository of a revision, and the error code if one is missing."""
        repository = self.hub.repositories.get((kind, name))
        if repository is None:
            return "", None, "RepoNotFound"
        commit = repository.branches.get(revision, revision)
        return commit, repository, "" if commit in repository.commits else "RevisionNotFound"

    def _api(self, kind: str, words: list[str]) -> tuple[int, dict[str, str], bytes]:
        name, (what, revision) = "/".join(words[:2]), words[2:4] or ("revision", "main")
        commit, repository, problem = self._find(kind, name, revision)
        if repository is None or problem:
            return 404, {"X-Error-Code": problem}, b"{}"
        answer: Any = {"id": name, "sha": commit, "private": repository.is_private}
        answer["siblings"] = [{"rfilename": path} for path in repository.commits[commit]]
        if what == "tree":
            files = repository.commits[commit]
            answer = [
                {"type": "file", "path": path, "size": len(content), "oid": _etag(content)}
                for path, content in files.items()
            ]
        return 200, {}, json.dumps(answer).encode()

    def _file(self, kind: str, words: list[str]) -> tuple[int, dict[str, str], bytes]:
        commit, repository, problem = self._find(kind, "/".join(words[:2]), words[3])
        if repository is None or problem:
            return 404, {"X-Error-Code": problem}, b""
        content = repository.commits[commit].get("/".join(words[4:]))
        if repository.is_gated:
            return 403, {"X-Error-Code": "GatedRepo"}, b""
        if content is None:
            return 404, {"X-Error-Code": "EntryNotFound"}, b""
        return 200, {"ETag": f'"{_etag(content)}"', "X-Repo-Commit": commit}, content


def _upload_mode(file: dict[str, Any]) -> dict[str, Any]:
    """Tell the client to upload weights and tokenizers as large files."""
    is_large = file["path"].endswith((".safetensors", ".pth")) or file["path"] == "tokenizer.json"
    mode = "lfs" if is_large else "regular"
    return {"path": file["path"], "uploadMode": mode, "shouldIgnore": False}


def _etag(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
