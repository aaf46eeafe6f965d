"""Tests of `dpo clean` and `dpo cache`: removed files, kept files, and the report of both."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from dpo_cli.run.directory import RunDirectory
from dpo_cli.run.events import Saved, Stopped
from tests.commands.conftest import Cli
from tests.support import story

pytestmark = pytest.mark.usefixtures("root")


@pytest.fixture(autouse=True)
def cache_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DPO_CACHE_DIR", str(tmp_path / "cache"))


def filled(run: RunDirectory) -> RunDirectory:
    """Make a run with three checkpoints, evidence, and files of killed writers."""
    for step in (100, 150, 200):
        run.commit_checkpoint(step, lambda path: write(path / "w.safetensors", 1000), keep=3)
    write(run.path / "non_finite/step-00000004/weights.safetensors", 500)
    write(run.checkpoints_path / "tmp-0123/w.safetensors", 300)
    write(run.path / f".rlhf_512.pth.{'0' * 32}.tmp", 40)
    write(run.path / f".control-stop.{'0' * 32}.tmp", 1)
    write(run.path / ".tmpAb12Cd", 2)
    return run


def write(path: Path, size_bytes: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(size_bytes))


@pytest.fixture
def finished(root: Path) -> RunDirectory:
    events = (replace(e, is_best=False) if isinstance(e, Saved) else e for e in story.whole())
    return filled(story.write(root, "finished", *events))


@pytest.fixture
def stopped(root: Path) -> RunDirectory:
    end = Stopped(reason="interrupted", step=110, optimizer_step=55)
    return filled(story.write(root, "stopped", *story.preparation(), end))


def content(run: RunDirectory) -> set[str]:
    return {str(path.relative_to(run.path)) for path in run.path.rglob("*")}


def test_a_dry_run_names_each_thing_and_why_and_removes_nothing(
    dpo: Cli, finished: RunDirectory
) -> None:
    before = content(finished)
    code, out, err = dpo("clean", "--dry-run")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].startswith(f"{finished.name}: ")
    why = {line.split()[2].rstrip(":"): line.partition(": ")[2] for line in lines[1:-1]}
    assert list(why) == [
        "checkpoints/tmp-0123",
        f".rlhf_512.pth.{'0' * 32}.tmp",
        ".tmpAb12Cd",
        "checkpoints/step-00000150",
        "checkpoints/step-00000100",
        "non_finite",
    ]
    assert (
        why["checkpoints/step-00000150"] == "an older checkpoint; step-00000200 is intact and stays"
    )
    assert lines[-1].startswith("this would free 3.")
    assert content(finished) == before


def test_a_completed_run_keeps_its_newest_checkpoint_and_its_records(
    dpo: Cli, finished: RunDirectory
) -> None:
    told = json.loads(dpo("clean", "--json")[1])
    assert told["failed"] == told["kept"] == []
    assert told["freed_bytes"] == sum(item["size_bytes"] for item in told["freed"]) > 2800
    assert [path.name for path in finished.checkpoints_path.iterdir()] == ["step-00000200"]
    assert not finished.nan_dump_path.exists()
    assert {"events.jsonl", "profile.toml", "COMPLETED"} <= content(finished)
    assert f".control-stop.{'0' * 32}.tmp" in content(finished)
    assert finished.newest_verified()[0] is not None
    assert dpo("clean")[1] == "freed 0 B\n"


def test_a_run_that_is_not_completed_is_left_alone_until_it_is_named(
    dpo: Cli, stopped: RunDirectory
) -> None:
    before = content(stopped)
    out = dpo("clean")[1]
    assert "is not completed (stopped)" in out
    assert f"with: dpo clean {stopped.name}" in out
    assert content(stopped) == before
    assert dpo("clean", "stopped")[0] == 0
    assert [path.name for path in stopped.checkpoints_path.iterdir()] == ["step-00000200"]


def test_a_run_that_trains_is_never_touched(dpo: Cli, finished: RunDirectory) -> None:
    before = content(finished)
    with finished.locked():
        code, out, _ = dpo("clean", "finished")
        assert (code, "is trained by process" in out) == (0, True)
    assert content(finished) - {"lock"} == before


def test_older_states_stay_where_the_newest_is_damaged(dpo: Cli, finished: RunDirectory) -> None:
    (finished.checkpoints_path / "step-00000200/w.safetensors").write_bytes(b"torn")
    out = dpo("clean")[1]
    assert "step-00000200 is damaged: w.safetensors has 4 bytes instead of 1000; it stays" in out
    left = {path.name for path in finished.checkpoints_path.iterdir()}
    assert left == {"step-00000200", "step-00000150"}
    (finished.checkpoints_path / "step-00000150/w.safetensors").write_bytes(b"torn")
    dpo("clean")
    assert {path.name for path in finished.checkpoints_path.iterdir()} == left


def test_the_best_state_stays(dpo: Cli, root: Path) -> None:
    saves = [
        Saved(
            step=2 * step,
            optimizer_step=step,
            checkpoint=f"step-{step:08d}",
            weights="rlhf_512.pth",
            size_bytes=1000,
            seconds=0.1,
            is_best=step == 100,
        )
        for step in (100, 150, 200)
    ]
    run = filled(story.write(root, "best", *saves, *story.whole()))
    assert "step-00000100 is the best on the held-out pairs; it stays" in dpo("clean")[1]
    left = {path.name for path in run.checkpoints_path.iterdir()}
    assert left == {"step-00000200", "step-00000100"}


def test_a_link_is_removed_and_what_it_leads_to_is_not(
    dpo: Cli, finished: RunDirectory, tmp_path: Path
) -> None:
    write(tmp_path / "mine/precious", 10)
    (finished.checkpoints_path / "tmp-link").symlink_to(tmp_path / "mine")
    assert dpo("clean")[0] == 0
    assert (tmp_path / "mine/precious").exists()


def test_no_runs(dpo: Cli) -> None:
    assert dpo("clean") == (0, "freed 0 B\n", "")
    assert dpo("clean", "missing")[0] == 2


# --- the cache ----------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    cache = tmp_path / "cache"
    write(cache / f"tokens/{'a' * 64}.safetensors", 700)
    write(cache / f"tokens/.{'b' * 64}.safetensors.{'0' * 32}.tmp", 90)
    write(cache / f"reference/{'c' * 64}.safetensors", 2000)
    write(cache / "holiday.jpg", 5)
    return cache


def test_where_the_cache_is_and_how_large(dpo: Cli, cache: Path) -> None:
    assert dpo("cache", "dir") == (0, f"{cache}\n", "")
    assert json.loads(dpo("cache", "dir", "--json")[1]) == {"path": str(cache)}
    lines = [line.split() for line in dpo("cache", "size")[1].splitlines()]
    assert [line[:3] for line in lines] == [
        ["tokens", "700", "B"],
        ["reference", "2.0", "kB"],
        ["together", "2.7", "kB"],
    ]
    told = json.loads(dpo("cache", "size", "--json")[1])
    assert told["size_bytes"] == 2700
    assert told["kinds"]["tokens"]["files"] == 1
    assert told["kinds"]["tokens"]["last_used"] == pytest.approx(time.time(), abs=60)


def test_only_own_files_are_removed_from_the_cache(dpo: Cli, cache: Path) -> None:
    assert dpo("cache", "clean", "--dry-run")[1] == "this would free 2.7 kB in 2 files\n"
    assert len(list(cache.rglob("*.safetensors"))) == 2
    assert json.loads(dpo("cache", "clean", "--json")[1])["freed_bytes"] == 2700
    left = {path.name for path in cache.rglob("*") if path.is_file()}
    assert left == {"holiday.jpg", f".{'b' * 64}.safetensors.{'0' * 32}.tmp"}
    [being_written] = cache.glob("tokens/.*")
    os.utime(being_written, (time.time() - 7200,) * 2)
    assert dpo("cache", "clean")[1] == "freed 90 B in 1 file\n"
    assert [path.name for path in cache.iterdir()] == ["holiday.jpg"]


def test_there_may_be_no_cache(dpo: Cli, tmp_path: Path) -> None:
    assert json.loads(dpo("cache", "size", "--json")[1])["size_bytes"] == 0
    assert dpo("cache", "clean")[1] == "freed 0 B in 0 files\n"
    assert not (tmp_path / "cache").exists()
