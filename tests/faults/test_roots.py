"""Fault 25: names with paths, and links: nothing is written outside of a run."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from dpo_cli.data.sampler import GlobalBatch
from dpo_cli.errors import DpoError, UsageError
from dpo_cli.export.export import export_run
from dpo_cli.run import launch
from dpo_cli.run.checkpoints import list_checkpoints
from dpo_cli.run.directory import RunDirectory
from dpo_cli.run.event_writer import EventWriter
from dpo_cli.run.events import Exported, Resumed, history
from dpo_cli.run.lookup import find_run, find_runs
from dpo_cli.training.nan_dump import write_nan_dump
from dpo_cli.training.reference import REFERENCE_FILE
from tests.support import workers
from tests.support.cli import Run, dpo, set_options
from tests.support.run_content import content, new_events, only
from tests.support.small_runs import good_settings

SECRET = b"somebody else's file, and no newline at its end"


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """File outside of the run, which must stay unchanged."""
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "secret").write_bytes(SECRET)
    return folder / "secret"


def assert_untouched(outside: Path) -> None:
    assert outside.read_bytes() == SECRET
    assert os.listdir(outside.parent) == [outside.name]


# --- names ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["../outside/x", "/etc/x", "..", ".", "a/../../b", "~root/x", "$HOME/x", "-", "x\ny", "a\0b"],
)
def test_a_name_stays_in_the_runs_folder(tmp_path: Path, outside: Path, name: str) -> None:
    run = RunDirectory.create(tmp_path / "runs", name, "")
    assert run.path.parent == tmp_path / "runs"
    assert run.path.resolve().parent == tmp_path / "runs"
    assert [found.name for found in find_runs(tmp_path / "runs")] == [run.name]
    assert_untouched(outside)


def test_dpo_train_makes_its_run_in_the_runs_folder(
    shared: Path, tmp_path: Path, outside: Path
) -> None:
    """The name is a path to another folder, and the prefix is `..`."""
    cwd = tmp_path / "cwd"
    cwd.mkdir()
    settings = {**good_settings(shared), "export.prefix": ".."}
    result = dpo("train", "dense", *set_options(settings), "--name", "../outside/x", cwd=cwd)
    assert result.returncode == 0, result.stderr
    [path] = cwd.rglob("profile.toml")
    assert path.parent.parent == cwd / "runs"
    assert (path.parent / ".._64.pth").is_file()
    assert_untouched(outside)
    assert {found.name for found in tmp_path.iterdir()} == {"cwd", "outside"}


@pytest.mark.parametrize("prefix", ["../x", "/tmp/x", "a/b", "a\\u0000b", "a\\nb", "好" * 49])
def test_a_prefix_that_is_no_name_is_a_usage_error(
    shared: Path, tmp_path: Path, prefix: str
) -> None:
    settings = {**good_settings(shared), "export.prefix": f'"{prefix}"'}
    result = dpo("train", "dense", *set_options(settings), cwd=tmp_path)
    assert result.returncode == 2
    assert "export.prefix" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "query", ["../outside", "../nowhere", "/etc", "..", ".", "./x", "outside/"]
)
def test_other_directories_are_not_resumed(
    tmp_path: Path, outside: Path, half: RunDirectory, query: str
) -> None:
    cwd = tmp_path / "cwd"
    cwd.mkdir()
    before = content(half.path)
    result = dpo("resume", query, cwd=cwd, DPO_RUNS_DIR=str(half.path.parent))
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert query in result.stderr
    assert content(half.path) == before
    assert_untouched(outside)


def test_a_link_is_not_taken_for_a_run(tmp_path: Path, half: RunDirectory) -> None:
    runs = tmp_path / "mine"
    runs.mkdir()
    (runs / half.name).symlink_to(half.path)
    (runs / "dense-20990101-000000-0000").symlink_to(half.path)
    assert find_runs(runs) == []
    for query in (None, half.name, "dense", "dense-2099"):
        with pytest.raises(UsageError, match="there are no runs"):
            find_run(runs, query)
    before = content(half.path)
    result = dpo("resume", "dense", "--runs-dir", runs, cwd=tmp_path)
    assert result.returncode == 2
    assert content(half.path) == before


# --- links in a run ---------------------------------------------------------------------------


def link(path: Path, target: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to(target)


REPLACED = ["skipped_rows.jsonl", "plan.json", "profile.toml", "rlhf_64.pth", REFERENCE_FILE]


@pytest.mark.parametrize("name", REPLACED)
def test_a_link_is_replaced_by_the_file(
    half: RunDirectory, whole: RunDirectory, tmp_path: Path, outside: Path, name: str
) -> None:
    """A file that is written whole replaces the link; the target of the link is unchanged."""
    path = half.path / name
    if name in ("plan.json", "profile.toml"):  # these are read before they are written
        outside.write_bytes(path.read_bytes())
        saved = outside.read_bytes()
    else:
        saved = SECRET
    link(path, outside)
    if name == "profile.toml":
        half.write_profile(half.read_profile())
    assert workers.work(half) == 0
    assert not path.is_symlink()
    assert outside.read_bytes() == saved
    assert os.listdir(outside.parent) == [outside.name]
    workers.assert_equal(half, whole)


APPENDED = ["events.jsonl", "worker.log", "lock"]


@pytest.mark.parametrize("is_dangling", [False, True])
@pytest.mark.parametrize("name", APPENDED)
def test_files_that_grow_must_not_be_links(
    half: RunDirectory, outside: Path, name: str, is_dangling: bool
) -> None:
    target = outside.with_name("new") if is_dangling else outside
    link(half.path / name, target)
    before = content(half.path)
    argv = ["touch", str(outside.with_name("ran"))]
    refusal = pytest.raises(
        DpoError, match=f"{name} is a link, and dpo does not write through links"
    )
    with refusal as caught, half.locked() as lock:
        launch.Launcher(half, lock, argv, observe=lambda event: None).run()
    assert caught.value.remedy
    assert content(half.path, *APPENDED) == {
        name: data for name, data in before.items() if name not in APPENDED
    }
    assert_untouched(outside)


def test_dpo_resume_refuses_a_linked_stream(half: RunDirectory, outside: Path) -> None:
    link(half.events_path, outside)
    result = dpo("resume", half.path, cwd=half.path)
    assert result.returncode == 1
    assert result.stderr.startswith(
        f"error: {half.events_path} is a link, and dpo does not write through links\n"
    )
    assert_untouched(outside)


def test_a_worker_alone_writes_through_no_link_either(half: RunDirectory, outside: Path) -> None:
    link(half.events_path, outside)
    assert workers.work(half) == 1
    assert_untouched(outside)


def test_no_log_of_a_launcher_in_the_background_through_a_link(
    half: RunDirectory, outside: Path
) -> None:
    link(half.launcher_log_path, outside)
    result = dpo("resume", half.path, "--detach", cwd=half.path)
    assert result.returncode == 1
    assert "launcher.log is a link" in result.stderr
    assert half.holder() is None
    assert_untouched(outside)


def to_a_file(checkpoint: Path, outside: Path) -> None:
    checkpoint.rename(outside.parents[1] / "aside")
    checkpoint.symlink_to(outside)


def to_nothing(checkpoint: Path, outside: Path) -> None:
    checkpoint.rename(outside.parents[1] / "aside")
    checkpoint.symlink_to(outside.with_name("nothing"))


def to_a_folder(checkpoint: Path, outside: Path) -> None:
    checkpoint.rename(outside.parents[1] / "aside")
    checkpoint.symlink_to(outside.parent)


def its_weights(checkpoint: Path, outside: Path) -> None:
    link(checkpoint / "weights.safetensors", outside)


def a_plain_file(checkpoint: Path, outside: Path) -> None:
    checkpoint.rename(outside.parents[1] / "aside")
    checkpoint.write_bytes(b"")


LINKS: list[Callable[[Path, Path], None]] = [
    *(to_a_file, to_nothing, to_a_folder, its_weights, a_plain_file)
]


@pytest.mark.parametrize("replace", LINKS)
def test_a_checkpoint_that_leads_elsewhere(
    half: RunDirectory, whole: RunDirectory, outside: Path, replace: Any
) -> None:
    """The linked checkpoint is passed over, saved again and removed; the target stays unchanged."""
    newest, previous = list_checkpoints(half.checkpoints_path)
    replace(newest.path, outside)
    (half.checkpoints_path / "tmp-of-a-dead-worker").symlink_to(outside.parent)
    events = new_events(half, lambda: workers.work(half))
    resumed = only(events, Resumed)
    assert resumed.checkpoint == previous.name
    assert newest.name in resumed.passed_over[0]
    workers.assert_equal(half, whole)
    assert_untouched(outside)
    assert os.listdir(half.checkpoints_path) == ["step-00000012"]


@pytest.mark.parametrize("linked", ["non_finite", "non_finite/step-7"])
def test_a_dump_is_not_written_through_a_link(tmp_path: Path, outside: Path, linked: str) -> None:
    directory = tmp_path / "run" / "non_finite" / "step-7"
    link = tmp_path / "run" / linked
    link.parent.mkdir(parents=True)
    link.symlink_to(outside.parent)
    names = sorted(os.listdir(outside.parent))
    with pytest.raises(OSError, match="symbolic links") as caught:
        write_nan_dump(directory, GlobalBatch(0, 0, ((0,),)), [1], [math.nan], Any, Any)
    assert caught.value.filename == str(link)
    assert_untouched(outside)
    assert sorted(os.listdir(outside.parent)) == names


# --- links at an export's place ---------------------------------------------------------------


def test_an_export_replaces_a_link_and_not_what_it_leads_to(
    half: RunDirectory, tmp_path: Path, outside: Path
) -> None:
    file = tmp_path / "rlhf_64.pth"
    file.symlink_to(outside)
    assert (
        workers.call(partial(export_run, half, file, None, False)) != 0
    )  # the file belongs to another program
    assert file.is_symlink()
    assert_untouched(outside)
    assert workers.call(partial(export_run, half, file, None, True)) == 0
    assert not file.is_symlink()
    assert set(torch.load(file)) == set(Run(half).weights)
    assert_untouched(outside)
    [event] = [event for event in history(half.events_path) if isinstance(event, Exported)]
    assert event.path == str(file)


def test_a_torn_tail_is_cut_off_where_it_lies(tmp_path: Path, outside: Path) -> None:
    """Negative control: without a link the torn tail is cut off."""
    stream = tmp_path / "events.jsonl"
    stream.write_bytes(b"{}\ntorn")
    EventWriter(stream).close()
    assert stream.read_bytes() == b"{}\n"
    link(stream, outside)
    with pytest.raises(OSError, match="symbolic links"):
        EventWriter(stream)
    assert_untouched(outside)
