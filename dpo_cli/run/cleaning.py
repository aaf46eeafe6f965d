"""Files and directories of a run that can be removed, each with a reason."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from dpo_cli.run import checkpoints
from dpo_cli.run.directory import RunDirectory
from dpo_cli.run.events import without_early_steps
from dpo_cli.run.view import RunView


@dataclass(frozen=True)
class Dispensable:
    """File or directory of a run that takes space and is not needed."""

    path: Path
    size_bytes: int
    reason: str


@dataclass(frozen=True)
class Cleaning:
    """Space that can be freed in one run.

    Attributes:
        run: the run.
        items: files and directories that neither a resume nor an export needs.
        remarks: sentences about what stays although a user may expect it to be removed.
    """

    run: RunDirectory
    items: tuple[Dispensable, ...]
    remarks: tuple[str, ...]

    @property
    def size_bytes(self) -> int:
        """Total size of the items."""
        return sum(item.size_bytes for item in self.items)


def look_through(run: RunDirectory) -> Cleaning:
    """Find the checkpoints and files that a run does not need.

    The newest intact checkpoint and the best one stay. The newest is verified first: if no
    checkpoint is intact, all stay.
    """
    items, remarks = list(_unfinished(run)), []
    newest, passed_over = run.newest_verified()
    remarks += [f"{problem}; it stays" for problem in passed_over]
    for path in sorted(run.checkpoints_path.glob("*.unreadable-*")):
        remarks.append(f"{path.name} could not be read when the run continued; it stays")
    if newest is not None:
        best = _best(run)
        for checkpoint in checkpoints.list_checkpoints(run.checkpoints_path):
            if checkpoint.optimizer_step > newest.optimizer_step or checkpoint == newest:
                continue
            if checkpoint.name == best:
                remarks.append(f"{best} is the best on the held-out pairs; it stays")
                continue
            reason = f"an older checkpoint; {newest.name} is intact and stays"
            items.append(_item(checkpoint.path, reason))
    if run.nan_dump_path.is_dir() and not run.nan_dump_path.is_symlink():
        reason = "inputs of steps whose loss or gradient was not finite"
        items.append(_item(run.nan_dump_path, reason))
    return Cleaning(run, tuple(items), tuple(remarks))


def free(cleaning: Cleaning) -> tuple[Cleaning, list[Path]]:
    """Remove what a run does not need; return what was removed, and the paths that could not be.

    Raises:
        DpoError: a process trains the run, or the directory cannot be written.
    """
    failed: list[Path] = []
    with cleaning.run.locked():
        now = look_through(cleaning.run)  # the run may have been trained since
        for item in now.items:
            if not _remove(item.path, cleaning.run):
                failed.append(item.path)
    gone = tuple(item for item in now.items if item.path not in failed)
    return Cleaning(now.run, gone, now.remarks), failed


def _unfinished(run: RunDirectory) -> Iterator[Dispensable]:
    """Find what killed writers left; not requests and exports, see `remove_leftovers`."""
    for path in sorted(run.checkpoints_path.glob("tmp-*")):
        yield _item(path, "an unfinished checkpoint")
    for path in sorted(run.torn_files()):
        yield _item(path, "an unfinished file of a process that was killed")


def _best(run: RunDirectory) -> str | None:
    best = RunView.of(without_early_steps(run.events_path, 1)).best
    return best.checkpoint if best else None


def _item(path: Path, reason: str) -> Dispensable:
    files = path.rglob("*") if path.is_dir() and not path.is_symlink() else [path]
    size_bytes = 0
    for file in files:
        with suppress(OSError):  # removed meanwhile
            size_bytes += 0 if file.is_dir() else file.lstat().st_size
    return Dispensable(path, size_bytes, reason)


def _remove(path: Path, run: RunDirectory) -> bool:
    if path.parent == run.checkpoints_path:
        return checkpoints.discard(path)
    with suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        return True
    return False
