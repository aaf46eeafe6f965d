"""Tests of an offline directory of W&B, read back record by record."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from dpo_cli.run.directory import RunDirectory
from dpo_cli.run.tracking.state import read_state
from dpo_cli.run.tracking.wandb import Wandb
from tests.run.tracking.server import Server
from tests.support.made_events import saved
from tests.support.tracking_readers import history, records
from tests.support.tracking_streams import (
    PLANNED,
    SECRET,
    evaluated,
    feed_to,
    private_words,
    resumed,
    sampled,
    step,
    steps,
    tell,
)

wandb = pytest.importorskip("wandb", reason="needs the extra wandb")


@pytest.fixture(autouse=True)
def no_login(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("HOME", str(tmp_path))
    wandb.teardown()  # cached settings of a server and a login


def feed(run: RunDirectory, **track: bool) -> None:
    feed_to("wandb", Wandb, run, **track)
    assert "failed" not in read_state(run)["wandb"]


def losses(run: RunDirectory) -> list[tuple[int, float]]:
    return [(row["_step"], row["train/loss"]) for row in history(run)]


def test_an_offline_directory_contains_the_metrics(run: RunDirectory) -> None:
    tell(run, PLANNED, evaluated(0), *steps([1, 2]), evaluated(2), saved(2))
    feed(run)
    first, _, last = history(run)
    assert first["eval/loss"] == 0.6
    assert last == {
        "_step": 2,
        "train/global_step": 2,
        "train/epoch": 0.5,
        "train/learning_rate": 2e-6,
        "train/loss": 0.5,
        "train/rewards/margins": 0.5,
        "eval/loss": 0.6,
        "eval/logps/chosen": -20.0,
    }
    (begun,) = [r.run for r in records(run) if r.WhichOneof("record_type") == "run"]
    config = {item.key: json.loads(item.value_json) for item in begun.config.update}
    assert begun.project == "MiniMind-DPO"
    assert begun.display_name == run.name
    assert config["dpo"]["beta"] == 0.1


def test_the_command_that_uploads_names_the_directory(
    run: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tell(run, PLANNED, *steps([1, 2]), saved(2))
    feed(run)
    state = read_state(run)["wandb"]
    assert state["offline"] == "no login"
    program, verb, folder = shlex.split(state["upload"])
    assert (program, verb) == ("wandb", "sync")
    assert (tmp_path / folder / f"run-{state['id']}.wandb").is_file()


def test_a_resumed_run_is_one_directory_of_the_same_run(run: RunDirectory) -> None:
    tell(run, PLANNED, *steps([1, 2, 3]))
    feed(run)
    before = read_state(run)["wandb"]["id"]
    tell(run, PLANNED, resumed(1), step(2, loss=9.0), *steps([3, 4]), saved(4))
    feed(run)
    assert losses(run) == [(1, 1.0), (2, 9.0), (3, 1 / 3), (4, 0.25)]
    assert read_state(run)["wandb"]["id"] == before
    (begun,) = [r.run for r in records(run) if r.WhichOneof("record_type") == "run"]
    assert begun.run_id == before


def test_nothing_private_is_in_the_directory(run: RunDirectory) -> None:
    tell(run, PLANNED, evaluated(0), sampled(0), *steps([1, 2]), saved(2))
    feed(run)
    (folder,) = (run.path / "wandb").glob("offline-run-*")
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    for file in files:
        content = file.read_bytes()
        for private in private_words(run.path.parent):
            assert private not in content, (file, private)


def test_samples_are_a_table_where_the_profile_says_so(run: RunDirectory) -> None:
    tell(run, PLANNED, evaluated(0), sampled(0), saved(0))
    feed(run, send_text=True)
    (table,) = (run.path / "wandb").glob("offline-run-*/files/media/table/eval/*.json")
    assert SECRET in table.read_text()


@pytest.mark.parametrize("how", ["WANDB_API_KEY", "netrc", "WANDB_MODE", "nothing"])
def test_a_login_is_found_without_asking(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dpo_cli.run.tracking.wandb import _why_offline

    if how == "netrc":
        netrc = tmp_path / "netrc"
        netrc.write_text("machine api.wandb.ai login user password x\n")
        netrc.chmod(0o600)
    elif how != "nothing":
        monkeypatch.setenv(how, "x")
    expected = {"WANDB_MODE": "WANDB_MODE is not online", "nothing": "no login"}
    assert _why_offline() == expected.get(how, "")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Server of W&B with a login for this process."""
    server = Server()
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    yield server
    wandb.teardown()
    server.shutdown()
    server.server_close()


def test_online_a_resumed_run_continues_after_the_last_step_of_the_server(
    run: RunDirectory, server: Server
) -> None:
    tell(run, PLANNED, evaluated(0), sampled(0), *steps([1, 2, 3]))
    feed(run)
    tell(run, PLANNED, resumed(1), *steps([2, 3, 4]), saved(4))
    (run.path / "track.json").write_text(json.dumps({"wandb": {"id": server.run, "sent": 0}}))
    feed(run)
    assert [row["_step"] for row in server.rows] == [0, 1, 2, 3, 4]
    assert [row["train/loss"] for row in server.rows[1:]] == [1.0, 0.5, 1 / 3, 0.25]
    assert read_state(run)["wandb"]["upload"] == ""
    for heard in server.heard:
        for private in private_words(run.path.parent, "site-packages"):
            assert private not in heard, heard


def test_what_was_kept_offline_is_sent_once_there_is_a_login(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch, server: Server
) -> None:
    monkeypatch.delenv("WANDB_API_KEY")
    tell(run, PLANNED, *steps([1, 2]), saved(2))
    feed(run)
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    tell(run, resumed(2), *steps([3]), saved(3))
    feed(run)
    assert [row["_step"] for row in server.rows] == [1, 2, 3]
    assert not list((run.path / "wandb").glob("offline-run-*"))


def test_if_the_server_fails_the_metrics_are_kept_offline(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch, server: Server
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "too short to be one")
    tell(run, PLANNED, *steps([1, 2]), saved(2))
    feed(run)
    assert losses(run) == [(1, 1.0), (2, 0.5)]
    assert "could not be reached" in read_state(run)["wandb"]["offline"]
