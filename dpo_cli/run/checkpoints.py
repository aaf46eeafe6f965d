"""Checkpoints on disk: a crash at any moment leaves the previous one or the new one, complete.

A checkpoint is a directory `step-<optimizer step>` with a manifest of its files. It gets this name
only when it is complete and flushed, so a directory with this name was intact once; the manifest
detects later damage. There is no pointer to the latest checkpoint that could be wrong.
"""

from __future__ import annotations

import os
import re
import shutil
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from dpo_cli import integrity
from dpo_cli.files import fsync_path
from dpo_cli.run.disk import explain_disk_errors

_NAME = re.compile(r"step-(\d{8,})(\.replaced)?")


@dataclass(frozen=True)
class Checkpoint:
    """Directory of the training state after `optimizer_step`.

    Attributes:
        path: the directory.
        optimizer_step: optimizer steps done.
        stamp: `integrity.stamp` of the files from before their verification; "" if not verified.
    """

    path: Path
    optimizer_step: int
    stamp: str = field(default="", compare=False, repr=False)

    @property
    def name(self) -> str:
        """Directory name, as events and messages print it."""
        return self.path.name

    def require_unchanged(self) -> None:
        """Check, after reading, that the files have not changed since their verification.

        Raises:
            DpoError: a file has changed.
        """
        if self.stamp:
            integrity.require_unchanged(self.stamp, self.path)


def commit(
    root: Path,
    optimizer_step: int,
    write: Callable[[Path], None],
    *,
    keep: int = 2,
    best: int | None = None,
) -> Checkpoint:
    """Save a checkpoint under `root`, then remove the old ones.

    The caller holds the lock of the run, so a temporary directory found here was left by a writer
    that was killed.

    Args:
        root: the directory of the run's checkpoints.
        optimizer_step: optimizer steps done. Later checkpoints are removed: a run that commits an
            earlier step was resumed from before them, because they were damaged.
        write: fills an empty directory.
        keep: number of checkpoints to keep, this one included.
        best: optimizer step of one more checkpoint to keep, if it exists.

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
    """Return the newest intact checkpoint, and a sentence for each newer one that is not."""
    passed_over: list[str] = []
    for checkpoint in map(_stamped, list_checkpoints(root)):
        problem = find_problem(checkpoint)
        if problem is None:
            return checkpoint, passed_over
        passed_over.append(problem)
    return None, passed_over


def verified(root: Path, optimizer_step: int) -> Checkpoint | None:
    """Return the verified checkpoint after a step; None if it does not exist or is not intact."""
    for checkpoint in list_checkpoints(root):
        if checkpoint.optimizer_step == optimizer_step:
            checkpoint = _stamped(checkpoint)
            if find_problem(checkpoint) is None:
                return checkpoint
    return None


def _stamped(checkpoint: Checkpoint) -> Checkpoint:
    with suppress(OSError):
        return replace(checkpoint, stamp=integrity.stamp(checkpoint.path))
    return checkpoint


def list_checkpoints(root: Path) -> list[Checkpoint]:
    """List the directories named like checkpoints, newest first, without verifying them."""
    if not root.is_dir():
        return []
    matches = [
        (match, root / match[0]) for name in os.listdir(root) if (match := _NAME.fullmatch(name))
    ]
    # Of two with the same step, the one without a suffix is newer.
    matches.sort(key=lambda item: (int(item[0][1]), item[0][2] is None), reverse=True)
    return [Checkpoint(path, int(match[1])) for match, path in matches]


def find_problem(checkpoint: Checkpoint) -> str | None:
    """Return a sentence that says why a checkpoint cannot be used; None if it is intact."""
    try:
        damage = _find_damage(checkpoint)
    except OSError as error:
        return f"{checkpoint.name} cannot be read: {error.strerror}"
    return f"{checkpoint.name} is damaged: {damage}" if damage else None


def discard(checkpoint: Path) -> bool:
    """Remove a checkpoint or what is left of one; return True if it is gone.

    The directory is renamed first: a crash while its files are removed must not leave a damaged
    checkpoint behind. Errors are ignored: the space matters less than the caller's own work.
    """
    with suppress(OSError):
        renamed = checkpoint.with_name(f"tmp-{uuid.uuid4().hex}")
        os.rename(checkpoint, renamed)
        _remove(renamed)
    return not os.path.lexists(checkpoint)


def _find_damage(checkpoint: Checkpoint) -> str | None:
    return integrity.find_damage(checkpoint.path, {"optimizer_step": checkpoint.optimizer_step})


def _seal(directory: Path, optimizer_step: int) -> None:
    """Flush the files, then write the manifest, then flush the directory."""
    paths = sorted(directory.rglob("*"))
    for path in paths:
        fsync_path(path)
    files = [path for path in paths if path.is_file()]
    integrity.write_manifest(directory, files, {"optimizer_step": optimizer_step})
    fsync_path(directory)


def _put_in_place(temporary: Path, final: Path) -> None:
    """Rename `temporary` to `final`, which may exist if the run was resumed from before it.

    One rename cannot replace a directory that is not empty. The old checkpoint is first renamed to
    a name that still counts as a checkpoint, so that there is one at every moment. One that cannot
    be read may be intact, so it stays, under a name that a resume does not look for.
    """
    if os.path.lexists(final) and _is_unreadable(final):
        _rename_unreadable(final)
    elif os.path.lexists(final):
        replaced = final.with_name(final.name + ".replaced")
        discard(replaced)
        os.rename(final, replaced)
    os.rename(temporary, final)


def _prune(root: Path, optimizer_step: int, keep: int, best: int | None) -> None:
    """Remove checkpoints that are replaced, later than `optimizer_step`, or too old."""
    kept: set[int] = set()
    for checkpoint in list_checkpoints(root):
        step = checkpoint.optimizer_step
        is_wanted = len(kept) < keep or step == best
        if step <= optimizer_step and step not in kept and is_wanted:
            kept.add(step)
        elif step >= optimizer_step and _is_unreadable(checkpoint.path):
            with suppress(OSError):
                _rename_unreadable(checkpoint.path)
        else:
            discard(checkpoint.path)


def _is_unreadable(checkpoint: Path) -> bool:
    try:
        integrity.find_damage(checkpoint, {})
    except OSError:
        return True
    return False


def _rename_unreadable(checkpoint: Path) -> None:
    os.rename(
        checkpoint, checkpoint.with_name(f"{checkpoint.name}.unreadable-{uuid.uuid4().hex[:8]}")
    )


def _remove(path: Path) -> None:
    """Remove a directory or a file; of a link only the link."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()
