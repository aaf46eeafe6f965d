"""MLflow's database and the requests of its client."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from dpo_cli.run.directory import RunDirectory
from dpo_cli.run.tracking.mlflow import MLflow
from dpo_cli.run.tracking.state import read_state
from tests.run.tracking.no_network import feed_without_network
from tests.support.made_events import saved
from tests.support.tracking_streams import (
    PLANNED,
    SECRET,
    evaluated,
    feed_to,
    new_run,
    private_words,
    resumed,
    sampled,
    step,
    steps,
    tell,
)

EXPERIMENT = "MiniMind-DPO"


@pytest.fixture(scope="module")
def client_class() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        pytest.importorskip("sqlalchemy", reason="needs the extra mlflow")
        return pytest.importorskip("mlflow", reason="needs the extra mlflow").MlflowClient


@pytest.fixture(scope="module")
def empty_database(client_class: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database without runs: MLflow takes seconds to create one."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    client_class(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture(autouse=True)
def settings(client_class: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")


@pytest.fixture
def run(tmp_path: Path, empty_database: Path) -> RunDirectory:
    run = new_run(tmp_path / "100 % 训练", use_mlflow=True)
    shutil.copy(empty_database, run.path.parent / "mlflow.db")
    return run


def feed(run: RunDirectory, **track: bool) -> None:
    feed_to("mlflow", MLflow, run, **track)
    assert "failed" not in read_state(run)["mlflow"]


class Kept:
    """The only run in the database beside a run."""

    def __init__(self, run: RunDirectory, client_class: Any) -> None:
        self._client = client_class(tracking_uri=f"sqlite:///{run.path.parent / 'mlflow.db'}")
        experiment = self._client.get_experiment_by_name(EXPERIMENT)
        (self.run,) = self._client.search_runs([experiment.experiment_id])

    def history(self, name: str) -> list[tuple[int, float]]:
        found = self._client.get_metric_history(self.run.info.run_id, name)
        return sorted((metric.step, metric.value) for metric in found)


def test_the_database_has_the_metrics_of_the_stream(run: RunDirectory, client_class: Any) -> None:
    tell(run, PLANNED, evaluated(0), *steps([1, 2]), evaluated(2), saved(2))
    feed(run)
    kept = Kept(run, client_class)
    assert kept.history("train/loss") == [(1, 1.0), (2, 0.5)]
    assert kept.history("train/rewards/margins") == [(1, 0.25), (2, 0.5)]
    assert kept.history("eval/logps/chosen") == [(0, 0.0), (2, -20.0)]
    assert kept.run.info.run_name == run.name
    assert kept.run.info.status == "FINISHED"
    assert kept.run.data.params["dpo.beta"] == "0.1"
    assert "data.data_path" not in kept.run.data.params


def test_a_resumed_run_continues_after_the_last_step(run: RunDirectory, client_class: Any) -> None:
    tell(run, PLANNED, *steps([1, 2, 3]))
    feed(run)
    before = read_state(run)["mlflow"]["id"]
    # What a killed feeder had sent but not noted.
    (run.path / "track.json").write_text(json.dumps({"mlflow": {"id": before, "sent": 0}}))
    tell(run, PLANNED, resumed(1), step(2, loss=9.0), *steps([3, 4]), saved(4))
    feed(run)
    kept = Kept(run, client_class)
    assert kept.run.info.run_id == before
    assert kept.history("train/loss") == [(1, 1.0), (2, 0.5), (3, 1 / 3), (4, 0.25)]


def test_a_run_that_the_service_lacks_is_sent_from_the_beginning(
    run: RunDirectory, client_class: Any
) -> None:
    (run.path / "track.json").write_text(json.dumps({"mlflow": {"id": "0" * 32, "sent": 2}}))
    tell(run, PLANNED, *steps([1, 2, 3]), saved(3))
    feed(run)
    assert [number for number, _ in Kept(run, client_class).history("train/loss")] == [1, 2, 3]


def test_nothing_private_is_in_the_database(run: RunDirectory, empty_database: Path) -> None:
    tell(run, PLANNED, evaluated(0), sampled(0), *steps([1, 2]), saved(2))
    feed(run)
    runs, empty = run.path.parent, empty_database.read_bytes()
    content = (runs / "mlflow.db").read_bytes()
    content = content.replace((runs / "mlflow").as_uri().encode(), b"")  # where texts would be
    for private in private_words():
        assert content.count(private) == empty.count(private), private  # MLflow has a table secrets


def test_samples_are_a_file_where_the_profile_says_so(run: RunDirectory) -> None:
    tell(run, PLANNED, evaluated(0), sampled(0), saved(0))
    feed(run, send_text=True)
    (file,) = (run.path.parent / "mlflow").rglob("step-00000000.md")
    assert SECRET in file.read_text()
    assert "**policy**" in file.read_text()


class Server(ThreadingHTTPServer):
    """Part of MLflow's server that its client needs for one run."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.heard: list[bytes] = []
        self.metrics: list[dict[str, Any]] = []
        self.status = ""
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def answer(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        info = {"run_id": "a" * 32, "experiment_id": "1", "status": "RUNNING"}
        match path.partition("/mlflow/")[2].partition("?")[0]:
            case "experiments/get-by-name":
                return 404, {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "none"}
            case "experiments/create":
                return 200, {"experiment_id": "1"}
            case "runs/create":
                return 200, {"run": {"info": info, "data": {}}}
            case "runs/log-batch":
                self.metrics += body.get("metrics", [])
            case "runs/update":
                self.status = body["status"]
                return 200, {"run_info": info}
            case "metrics/get-history":
                name = path.partition("metric_key=")[2].partition("&")[0].replace("%2F", "/")
                return 200, {"metrics": [each for each in self.metrics if each["key"] == name]}
        return 200, {}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.heard.append(f"{self.path}\n{self.headers}".encode() + body)
        status, content = self.server.answer(self.path, json.loads(body or b"{}"))
        answer = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_GET = do_PATCH = do_POST  # noqa: N815

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    server = Server()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.server_port}")
    yield server
    server.shutdown()
    server.server_close()


def test_a_server_gets_the_metrics_and_nothing_private(tmp_path: Path, server: Server) -> None:
    run = new_run(tmp_path)
    tell(run, PLANNED, evaluated(0), sampled(0), *steps([1, 2, 3]))
    feed(run)
    tell(run, PLANNED, resumed(1), *steps([2, 3, 4]), saved(4))
    feed(run)
    losses = [each for each in server.metrics if each["key"] == "train/loss"]
    assert [(each["step"], each["value"]) for each in losses] == [
        *((1, 1.0), (2, 0.5)),
        *((3, 1 / 3), (4, 0.25)),
    ]
    assert server.status == "FINISHED"
    assert not (run.path.parent / "mlflow.db").exists()
    for heard in server.heard:
        for private in private_words(tmp_path, "site-packages"):
            assert private not in heard, heard


def test_an_unreachable_server_is_named(tmp_path: Path, server: Server) -> None:
    run = new_run(tmp_path)
    server.shutdown()
    server.server_close()
    tell(run, PLANNED, *steps([1, 2]), saved(2))
    feed_to("mlflow", MLflow, run)
    assert "127.0.0.1" in read_state(run)["mlflow"]["failed"]


def test_without_a_server_it_opens_no_connection(run: RunDirectory, tmp_path: Path) -> None:
    feed_without_network(run, "mlflow", HOME=str(tmp_path))
