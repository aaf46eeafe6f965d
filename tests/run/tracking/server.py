"""Minimal server of W&B for an online client: keeps one run, and all requests."""

from __future__ import annotations

import gzip
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Server(ThreadingHTTPServer):
    """Server on a free port of this machine."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.heard: list[bytes] = []
        """Each request, with its path and headers."""
        self.history: list[str] = []
        """The rows of the run, as JSON."""
        self.run = ""
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(row) for row in self.history]

    def handle_error(self, *_: Any) -> None:
        """Ignore errors: the client closes connections at any time."""

    def answer(self, path: str, body: bytes) -> dict[str, Any]:
        if path.endswith("/file_stream"):
            files = json.loads(body).get("files") or {}
            if part := files.get("wandb-history.jsonl"):
                self.history[part["offset"] :] = part["content"]
            return {"exitcode": None, "limits": {}}
        if path != "/graphql":
            return {}
        asked = json.loads(body)
        answer = getattr(self, f"_{asked['operationName']}", lambda **_: {})
        return {"data": answer(**(asked.get("variables") or {}))}

    def _Viewer(self, **_: Any) -> dict[str, Any]:  # noqa: N802
        names = {"id": "x", "entity": "me", "username": "me", "email": "", "flags": "{}"}
        return {"viewer": {**names, "teams": {"edges": []}}}

    def _RunResumeStatus(self, **_: Any) -> dict[str, Any]:  # noqa: N802
        if not self.run:
            return {"model": None}
        kept = {
            "id": "1",
            "name": self.run,
            "displayName": "d",
            "summaryMetrics": "{}",
            "config": "{}",
            "tags": [],
            "notes": None,
            "wandbConfig": '{"t": 1}',
            "logLineCount": 0,
            "eventsLineCount": 0,
            "eventsTail": "[]",
            "historyLineCount": len(self.history),
            "historyTail": json.dumps(self.history[-1:]),
        }
        entity = {"id": "e", "name": "me"}
        return {"model": {"id": "p", "name": "mine", "entity": entity, "bucket": kept}}

    def _UpsertBucket(self, name: str, project: str, **_: Any) -> dict[str, Any]:  # noqa: N802
        inserted, self.run = not self.run, name or self.run
        where = {"id": "p", "name": project, "entity": {"id": "e", "name": "me"}}
        bucket = {"id": "1", "name": self.run, "displayName": "d", "project": where}
        bucket["historyLineCount"] = len(self.history)
        return {"upsertBucket": {"bucket": bucket, "inserted": inserted}}

    def _CreateRunFiles(self, files: list[str], **_: Any) -> dict[str, Any]:  # noqa: N802
        places = [{"name": name, "uploadUrl": f"{self.url}/upload/{name}"} for name in files]
        return {"createRunFiles": {"runID": "1", "uploadHeaders": [], "files": places}}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        self.server.heard.append(f"{self.path}\n{self.headers}".encode() + body)
        answer = json.dumps(self.server.answer(self.path, body)).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_GET = do_PUT = do_POST  # noqa: N815

    def log_message(self, format: str, *args: Any) -> None:
        """Print no log."""
