"""Tests of checkpoints: order of the commit, detection of damage, and retention."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
from collections.abc import Callable
from io import BufferedReader
from pathlib import Path

import pytest

from dpo_cli import integrity
from dpo_cli.errors import DpoError, NoSpaceError
from dpo_cli.files import fsync_path
from dpo_cli.integrity import MANIFEST
from dpo_cli.run import checkpoints
from dpo_cli.run.checkpoints import (
    Checkpoint,
    commit,
    find_problem,
    list_checkpoints,
    newest_verified,
)


def state(content: str = "weights") -> Callable[[Path], None]:
    def write(directory: Path) -> None:
        (directory / "weights.safetensors").write_text(content * 100)
        (directory / "ranks").mkdir()
        (directory / "ranks" / "rng-0.pt").write_bytes(b"\x01\x02")

    return write


def names(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


def test_a_committed_checkpoint_verifies_and_lists_every_file(tmp_path: Path) -> None:
    checkpoint = commit(tmp_path, 400, state())
    assert checkpoint == Checkpoint(tmp_path / "step-00000400", 400)
    manifest = json.loads((checkpoint.path / MANIFEST).read_text())
    assert set(manifest["files"]) == {"weights.safetensors", "ranks/rng-0.pt"}
    assert newest_verified(tmp_path) == (checkpoint, [])


def test_the_two_newest_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        commit(tmp_path, step, state())
    assert names(tmp_path) == ["step-00000003", "step-00000004"]
    commit(tmp_path, 5, state(), keep=1)
    assert names(tmp_path) == ["step-00000005"]


def test_the_best_is_kept_beside_the_newest(tmp_path: Path) -> None:
    for step, best in ((1, 1), (2, 2), (3, 2), (4, 2), (5, 2)):
        commit(tmp_path, step, state(), best=best)
    assert names(tmp_path) == ["step-00000002", "step-00000004", "step-00000005"]
    commit(tmp_path, 6, state(), keep=1, best=2)
    assert names(tmp_path) == ["step-00000002", "step-00000006"]
    commit(tmp_path, 7, state(), keep=1, best=7)
    assert names(tmp_path) == ["step-00000007"]
    commit(tmp_path, 8, state(), keep=1, best=3)  # the checkpoint is removed by then
    assert names(tmp_path) == ["step-00000008"]


def test_a_damaged_best_is_only_passed_over(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        commit(tmp_path, step, state(), best=1)
    (tmp_path / "step-00000001" / MANIFEST).unlink()
    found, passed_over = newest_verified(tmp_path)
    assert found == Checkpoint(tmp_path / "step-00000004", 4)
    assert passed_over == []


def test_leftovers_of_dead_writers_go_at_the_next_commit(tmp_path: Path) -> None:
    (tmp_path / "tmp-dead").mkdir()
    (tmp_path / "tmp-dead" / "weights.safetensors").write_text("half")
    assert newest_verified(tmp_path) == (None, [])
    commit(tmp_path, 1, state())
    assert names(tmp_path) == ["step-00000001"]


def test_later_damaged_checkpoints_are_removed_after_going_back(tmp_path: Path) -> None:
    for step in (100, 200):
        commit(tmp_path, step, state())
    (tmp_path / "step-00000200" / MANIFEST).unlink()
    commit(tmp_path, 150, state())
    assert names(tmp_path) == ["step-00000100", "step-00000150"]


def test_committing_a_step_again_replaces_it(tmp_path: Path) -> None:
    commit(tmp_path, 1, state("old"))
    checkpoint = commit(tmp_path, 1, state("new"))
    assert (checkpoint.path / "weights.safetensors").read_text().startswith("new")
    assert names(tmp_path) == ["step-00000001"]
    assert newest_verified(tmp_path) == (checkpoint, [])


@pytest.mark.parametrize("crash_at", range(4))
def test_a_crash_at_any_rename_leaves_a_whole_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crash_at: int
) -> None:
    """The only step may be committed again, and the crash may happen again."""

    class Crash(BaseException):
        pass

    rename = os.rename
    renames = 0

    def crash(source: Path, target: Path) -> None:
        nonlocal renames
        renames += 1
        if renames == crash_at + 1:
            raise Crash
        rename(source, target)

    commit(tmp_path, 1, state("old"))
    for _ in range(2):
        renames = 0
        with monkeypatch.context() as patched:
            patched.setattr(checkpoints.os, "rename", crash)
            with contextlib.suppress(Crash):
                commit(tmp_path, 1, state("new"))
        assert renames >= min(crash_at + 1, 2)
        checkpoint, passed_over = newest_verified(tmp_path)
        assert checkpoint is not None
        assert passed_over == []
    commit(tmp_path, 1, state("new"))
    assert names(tmp_path) == ["step-00000001"]


def test_everything_is_flushed_before_the_rename_and_the_parent_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    fsync, rename = fsync_path, os.rename

    def record_fsync(path: Path) -> None:
        calls.append("fsync " + ("temporary" if path.name.startswith("tmp-") else path.name))
        fsync(path)

    def record_rename(source: Path, target: Path) -> None:
        calls.append("rename")
        rename(source, target)

    monkeypatch.setattr(checkpoints, "fsync_path", record_fsync)
    monkeypatch.setattr(integrity, "fsync_path", record_fsync)
    monkeypatch.setattr(checkpoints.os, "rename", record_rename)
    commit(tmp_path, 1, state())
    flushed = calls[: calls.index("rename")]
    assert set(flushed[:-2]) == {"fsync ranks", "fsync rng-0.pt", "fsync weights.safetensors"}
    assert flushed[-2:] == [f"fsync {MANIFEST}", "fsync temporary"]
    assert calls[calls.index("rename") + 1 :] == [f"fsync {tmp_path.name}"]


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda g: (g / MANIFEST).unlink(), "manifest.json is missing"),
        (lambda g: (g / MANIFEST).write_bytes(bytes(4096)), "manifest.json cannot be parsed"),
        (lambda g: (g / MANIFEST).write_text("[]"), "manifest.json cannot be parsed"),
        (lambda g: (g / "weights.safetensors").unlink(), "weights.safetensors is missing"),
        (lambda g: os.truncate(g / "weights.safetensors", 5), "has 5 bytes instead of 700"),
        (lambda g: (g / "ranks" / "rng-0.pt").write_bytes(b"\x01\x03"), "rng-0.pt has changed"),
    ],
)
def test_damage_is_named_and_the_one_before_is_used(
    tmp_path: Path, damage: Callable[[Path], object], sentence: str
) -> None:
    before = commit(tmp_path, 1, state())
    damage(commit(tmp_path, 2, state()).path)
    found, [passed_over] = newest_verified(tmp_path)
    assert found == before
    assert passed_over.startswith("step-00000002 is damaged: ")
    assert sentence in passed_over


def test_an_unreadable_checkpoint_is_passed_over_but_never_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A read error does not prove damage."""
    before = commit(tmp_path, 1, state())
    unreadable = commit(tmp_path, 2, state())
    open_regular = integrity.open_regular

    def fail(path: Path) -> BufferedReader:
        if path.is_relative_to(unreadable.path):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return open_regular(path)

    monkeypatch.setattr(integrity, "open_regular", fail)
    reason = "step-00000002 cannot be read: Input/output error"
    assert newest_verified(tmp_path) == (before, [reason])
    after = commit(tmp_path, 1, state("again"))
    assert newest_verified(tmp_path) == (after, [])
    [kept] = set(names(tmp_path)) - {after.name}
    assert kept.startswith("step-00000002.unreadable-")
    assert (tmp_path / kept / MANIFEST).exists()


def test_an_unreadable_checkpoint_is_not_replaced_by_the_same_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit(tmp_path, 2, state("first"))
    first = (tmp_path / "step-00000002/weights.safetensors").stat().st_ino
    open_regular = integrity.open_regular

    def fail(path: Path) -> BufferedReader:
        if path.stat().st_ino == first:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return open_regular(path)

    monkeypatch.setattr(integrity, "open_regular", fail)
    again = commit(tmp_path, 2, state("again"))
    assert newest_verified(tmp_path) == (again, [])
    [kept] = set(names(tmp_path)) - {again.name}
    assert (tmp_path / kept / "weights.safetensors").stat().st_ino == first


def test_a_checkpoint_that_changes_between_check_and_use_is_refused(tmp_path: Path) -> None:
    commit(tmp_path, 1, state())
    checkpoint, _ = newest_verified(tmp_path)
    assert checkpoint is not None
    checkpoint.require_unchanged()
    weights = checkpoint.path / "weights.safetensors"
    with weights.open("r+b") as file:  # in place, with the same size
        file.write(b"W")
    with pytest.raises(DpoError, match="step-00000001 changed while it was read"):
        checkpoint.require_unchanged()


def test_a_checkpoint_under_the_name_of_another_step_is_damaged(tmp_path: Path) -> None:
    checkpoint = commit(tmp_path, 1, state())
    checkpoint.path.rename(tmp_path / "step-00000009")
    assert newest_verified(tmp_path)[0] is None


def test_if_all_are_damaged_every_reason_is_returned(tmp_path: Path) -> None:
    for step in (1, 2):
        (commit(tmp_path, step, state()).path / "weights.safetensors").write_text("x")
    found, passed_over = newest_verified(tmp_path)
    assert found is None
    assert [sentence.split()[0] for sentence in passed_over] == ["step-00000002", "step-00000001"]


def test_no_flipped_bit_anywhere_loads_other_content(tmp_path: Path) -> None:
    checkpoint = commit(tmp_path, 1, state())
    files = [path for path in sorted(checkpoint.path.rglob("*")) if path.is_file()]
    whole = {path: path.read_bytes() for path in files}
    rng = random.Random(0)
    for path in files:
        for _ in range(60):
            damaged = bytearray(whole[path])
            damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
            path.write_bytes(damaged)
            believed = find_problem(checkpoint) is None
            # A flip in the white space of the manifest changes no value.
            assert not believed or (
                path.name == MANIFEST and json.loads(damaged) == json.loads(whole[path])
            )
        path.write_bytes(whole[path])
    assert find_problem(checkpoint) is None


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        OSError(errno.EFBIG, os.strerror(errno.EFBIG)),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_leaves_the_last_checkpoint_and_nothing_else(
    tmp_path: Path, error: Exception
) -> None:
    before = commit(tmp_path, 1, state())

    def write(directory: Path) -> None:
        (directory / "weights.safetensors").write_text("half")
        raise error

    with pytest.raises(NoSpaceError) as caught:
        commit(tmp_path, 2, write)
    assert caught.value.remedy
    assert names(tmp_path) == ["step-00000001"]
    assert newest_verified(tmp_path) == (before, [])


def test_other_errors_of_the_writer_pass_and_leave_nothing(tmp_path: Path) -> None:
    def write(directory: Path) -> None:
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        commit(tmp_path, 1, write)
    assert names(tmp_path) == []


def test_other_files_are_no_checkpoints(tmp_path: Path) -> None:
    (tmp_path / "step-1").mkdir()
    (tmp_path / "step-00000001.bak").mkdir()
    (tmp_path / "notes.txt").write_text("")
    assert list_checkpoints(tmp_path) == []
    assert list_checkpoints(tmp_path / "missing") == []
