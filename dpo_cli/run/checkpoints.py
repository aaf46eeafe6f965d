"""Saved training states: committed so that a crash at any moment leaves the old one or the new one.

A checkpoint is a directory `step-<optimizer step>` with a manifest of the size and SHA-256 of every
file. It is complete before it gets that name, so whatever bears the name was whole once; the
manifest finds what happened to it since. There is no pointer to the latest that could be wrong.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from dpo_cli.files import fsync_path, sha256_file
from dpo_cli.run.disk import explain_disk_errors

MANIFEST = "manifest.json"
_NAME = re.compile(r"step-(\d{8,})(\.replaced)?")


@dataclass(frozen=True)
class Checkpoint:
    """One saved training state: a directory of files, complete after `optimizer_step`."""

    path: Path
    optimizer_step: int

    @property
    def name(self) -> str:
        """The directory's name, as events and messages mention it."""
        return self.path.name


def commit(
    root: Path,
    optimizer_step: int,
    write: Callable[[Path], None],
    *,
    keep: int = 2,
    best: int | None = None,
) -> Checkpoint:
    """Save a checkpoint under `root`, then remove all but the `keep` newest up to this one.

    The one after optimizer step `best` is kept beside them, if there is one. `write` gets an empty
    directory to put its files into. Later checkpoints than this one are removed too: a run that
    commits an earlier step went back past them because they were damaged. The caller holds the
    run's lock; a temporary directory found here is a dead writer's.

    Raises:
        NoSpaceError: the disk is full; nothing changed.
        DpoError: the directory cannot be written.
    """
    final = root / f"step-{optimizer_step:08d}"
    temporary = root / f"tmp-{uuid.uuid4().hex}"
    with explain_disk_errors(root):
        for leftover in root.glob("tmp-*"):
            _remove(leftover)
        temporary.mkdir()
        try:
            write(temporary)
            _seal(temporary, optimizer_step)
            _put_in_place(temporary, final)
        except BaseException:
            _remove(temporary)
            raise
        fsync_path(root)
    _prune(root, optimizer_step, keep, best)
    return Checkpoint(final, optimizer_step)


def newest_verified(root: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint whose every file is as it was saved, and why newer ones are not it."""
    passed_over: list[str] = []
    for checkpoint in list_checkpoints(root):
        damage = find_damage(checkpoint)
        if damage is None:
            return checkpoint, passed_over
        passed_over.append(f"{checkpoint.name} is damaged: {damage}")
    return None, passed_over


def list_checkpoints(root: Path) -> list[Checkpoint]:
    """Everything that bears a checkpoint's name, newest first, unverified."""
    if not root.is_dir():
        return []
    found = [
        (match, root / match[0]) for name in os.listdir(root) if (match := _NAME.fullmatch(name))
    ]
    # Of two with one step, the one without a suffix is the newer.
    found.sort(key=lambda item: (int(item[0][1]), item[0][2] is None), reverse=True)
    return [Checkpoint(path, int(match[1])) for match, path in found]


def find_damage(checkpoint: Checkpoint) -> str | None:
    """What is wrong with a checkpoint's files, in words; None if they are as they were saved."""
    try:
        manifest = json.loads((checkpoint.path / MANIFEST).read_bytes())
        if manifest["optimizer_step"] != checkpoint.optimizer_step:
            return f"its manifest is of optimizer step {manifest['optimizer_step']}"
        for name, saved in manifest["files"].items():
            file = checkpoint.path / name
            size_bytes = file.stat().st_size
            if size_bytes != saved["size_bytes"]:
                return f"{name} has {size_bytes} bytes of {saved['size_bytes']}"
            if sha256_file(file) != saved["sha256"]:
                return f"the content of {name} has changed"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except OSError as error:
        return f"it cannot be read ({error.strerror})"
    except (ValueError, KeyError, TypeError, AttributeError):
        return "its manifest cannot be read"
    return None


def _seal(directory: Path, optimizer_step: int) -> None:
    """Flush every file to the disk, then the manifest that describes them, then the entries."""
    paths = sorted(directory.rglob("*"))
    files = [path for path in paths if path.is_file()]
    for path in paths:
        fsync_path(path)
    manifest = {
        "optimizer_step": optimizer_step,
        "files": {
            file.relative_to(directory).as_posix(): {
                "size_bytes": file.stat().st_size,
                "sha256": sha256_file(file),
            }
            for file in files
        },
    }
    manifest_path = directory / MANIFEST
    manifest_path.write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    fsync_path(manifest_path)
    fsync_path(directory)


def _put_in_place(temporary: Path, final: Path) -> None:
    """Rename `temporary` to `final`, over which a directory cannot be renamed in one call.

    A checkpoint that is already there (a run that went back and came here again) steps aside under
    a name that still counts as a checkpoint, so that no moment is without one.
    """
    if os.path.lexists(final):
        aside = final.with_name(final.name + ".replaced")
        _discard(aside)
        os.rename(final, aside)
    os.rename(temporary, final)


def _prune(root: Path, optimizer_step: int, keep: int, best: int | None) -> None:
    """Remove checkpoints that are replaced, later than `optimizer_step`, or too many."""
    kept: set[int] = set()
    for checkpoint in list_checkpoints(root):
        step = checkpoint.optimizer_step
        is_wanted = len(kept) < keep or step == best
        if step <= optimizer_step and step not in kept and is_wanted:
            kept.add(step)
        else:
            _discard(checkpoint.path)


def _discard(checkpoint: Path) -> None:
    """Remove a checkpoint, nameless first: a crash in between must not leave a damaged one.

    What cannot be removed stays: the state that was just saved matters more than the space.
    """
    with suppress(OSError):
        doomed = checkpoint.with_name(f"tmp-{uuid.uuid4().hex}")
        os.rename(checkpoint, doomed)
        _remove(doomed)


def _remove(path: Path) -> None:
    """Remove a directory, or what lies in the place of one; a link itself, never where it leads."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def discard(checkpoint: Path) -> bool:
    """Remove a checkpoint, or what a dead writer left of one; whether it is gone."""
    _discard(checkpoint)
    return not os.path.lexists(checkpoint)
