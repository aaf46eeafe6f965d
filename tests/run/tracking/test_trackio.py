"""Trackio's database, read back by Trackio."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dpo_cli.run.directory import RunDirectory
from dpo_cli.run.tracking.state import read_state
from dpo_cli.run.tracking.trackio import Trackio
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

hub = pytest.importorskip("huggingface_hub")  # before the tracker sets HF_HUB_OFFLINE

PROJECT = "MiniMind-DPO"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trackio's folder, which it reads from the environment once."""
    folder = tmp_path_factory.mktemp("trackio")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRACKIO_DIR", str(folder))
        pytest.importorskip("trackio", reason="needs the extra trackio")
    return folder


@pytest.fixture(autouse=True)
def no_account(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "get_token", lambda: None)
    for name in ("HF_HUB_OFFLINE", "TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL", "TRACKIO_WEBHOOK_URL"):
        monkeypatch.setenv(name, "")  # restored after the test, whatever the tracker sets


def feed(run: RunDirectory, **track: bool) -> None:
    feed_to("trackio", Trackio, run, **track)
    assert "failed" not in read_state(run)["trackio"]


def kept(run: RunDirectory) -> Any:
    """The only run of this name."""
    import trackio

    (own,) = [each for each in trackio.Api().runs(PROJECT) if each.name == run.name]
    return own


def rows(run: RunDirectory) -> list[dict[str, Any]]:
    from trackio.sqlite_storage import SQLiteStorage

    own = kept(run)
    logs = SQLiteStorage.get_logs(PROJECT, own.name, run_id=own.id)
    return [{name: row[name] for name in row if name != "timestamp"} for row in logs]


def test_the_database_has_the_metrics_of_the_stream(run: RunDirectory) -> None:
    tell(run, PLANNED, evaluated(0), *steps([1, 2]), evaluated(2), saved(2))
    feed(run)
    first, _, last = rows(run)
    assert (first["step"], first["eval/loss"]) == (0, 0.6)
    assert last == {
        "step": 2,
        "train/epoch": 0.5,
        "train/learning_rate": 2e-6,
        "train/loss": 0.5,
        "train/rewards/margins": 0.5,
        "eval/loss": 0.6,
        "eval/logps/chosen": -20.0,
    }
    assert kept(run).config["dpo"]["beta"] == 0.1


def test_a_resumed_run_is_one_run_with_its_newest_values(run: RunDirectory) -> None:
    tell(run, PLANNED, *steps([1, 2, 3]))
    feed(run)
    tell(run, PLANNED, resumed(1), step(2, loss=9.0), *steps([3, 4]), saved(4))
    feed(run)
    assert [(row["step"], row["train/loss"]) for row in rows(run)] == [
        *((1, 1.0), (2, 9.0)),
        *((3, 1 / 3), (4, 0.25)),
    ]


def test_other_runs_of_the_project_stay(run: RunDirectory, tmp_path: Path) -> None:
    other = RunDirectory.create(tmp_path / "runs", "other", run.read_profile())
    for each in (other, run, run):
        tell(each, PLANNED, *steps([1, 2]), saved(2))
        feed(each)
    assert len(rows(other)) == 2


def test_nothing_private_is_in_the_database(run: RunDirectory, folder: Path) -> None:
    tell(run, PLANNED, evaluated(0), sampled(0), *steps([1, 2]), saved(2))
    feed(run)
    # Texts of another test may be in the pages of the project's file, so read this run alone.
    content = repr([rows(run), kept(run).config]).encode()
    assert kept(run).config["_Username"] is None
    for private in private_words(run.path.parent, folder):
        assert private not in content


def test_samples_are_a_text_where_the_profile_says_so(run: RunDirectory) -> None:
    tell(run, PLANNED, evaluated(0), sampled(0), saved(0))
    feed(run, send_text=True)
    assert SECRET in rows(run)[0]["eval/samples"]["_value"]
    assert "**policy**" in rows(run)[0]["eval/samples"]["_value"]


@pytest.mark.usefixtures("folder")
def test_it_opens_no_connection(tmp_path: Path) -> None:
    own = {"HOME": str(tmp_path), "TRACKIO_DIR": str(tmp_path / "trackio")}
    feed_without_network(new_run(tmp_path, use_trackio=True), "trackio", **own)
