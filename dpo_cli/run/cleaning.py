"""What of a run could go without being missed, and why."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from dpo_cli.run import checkpoints
from dpo_cli.run.directory import RunDirectory
from dpo_cli.run.events import Saved, history


@dataclass(frozen=True)
class Dispensable:
    """Something that takes space and is not needed: a file or a directory of a run."""

    path: Path
    size_bytes: int
    reason: str


@dataclass(frozen=True)
class Cleaning:
    """What can be freed of one run.

    Attributes:
        run: whose.
        items: what a resume and an export do without.
        remarks: what stays although one might expect it to go.
    """

    run: RunDirectory
    items: tuple[Dispensable, ...]
    remarks: tuple[str, ...]

    @property
    def size_bytes(self) -> int:
        """Of all items."""
        return sum(item.size_bytes for item in self.items)


def look_through(run: RunDirectory) -> Cleaning:
    """Find what a run does not need: states but the newest whole one and the best, and the like.

    The newest state is verified first, by its hashes: as long as none is whole, all stay.
    """
    items, remarks = list(_torn(run)), []
    newest, passed_over = run.newest_verified()
    remarks += [f"{problem}; it stays" for problem in passed_over]
    if newest is not None:
        best = _best(run)
        for checkpoint in checkpoints.list_checkpoints(run.checkpoints_path):
            if checkpoint.optimizer_step > newest.optimizer_step or checkpoint == newest:
                continue
            if checkpoint.name == best:
                remarks.append(f"{best} is the best on the held-out pairs; it stays")
                continue
            reason = f"an older state; {newest.name} is whole and stays"
            items.append(_item(checkpoint.path, reason))
    if run.nan_dump_path.is_dir() and not run.nan_dump_path.is_symlink():
        reason = "what steps began with whose loss or gradient was not finite"
        items.append(_item(run.nan_dump_path, reason))
    return Cleaning(run, tuple(items), tuple(remarks))


def free(cleaning: Cleaning) -> tuple[Cleaning, list[Path]]:
    """Remove what can be freed of a run that nobody trains: what went, and what could not go.

    Raises:
        DpoError: somebody trains it, or it cannot be written.
    """
    failed: list[Path] = []
    with cleaning.run.locked():
        now = look_through(cleaning.run)  # it may have trained on since
        for item in now.items:
            if not _remove(item.path, cleaning.run):
                failed.append(item.path)
    gone = tuple(item for item in now.items if item.path not in failed)
    return Cleaning(now.run, gone, now.remarks), failed


def _torn(run: RunDirectory) -> Iterator[Dispensable]:
    """What killed writers left; as in `RunDirectory.remove_leftovers`, no requests and exports."""
    for path in sorted(run.checkpoints_path.glob("tmp-*")):
        yield _item(path, "a save that was cut short")
    for path in sorted(run.torn_files()):
        yield _item(path, "a file that was being written when its writer died")


def _best(run: RunDirectory) -> str | None:
    """The state that the run keeps because it was the best on the held-out pairs."""
    saves = [event for event in history(run.events_path) if isinstance(event, Saved)]
    return next((s.checkpoint for s in reversed(saves) if s.is_best), None)


def _item(path: Path, reason: str) -> Dispensable:
    files = path.rglob("*") if path.is_dir() and not path.is_symlink() else [path]
    size_bytes = 0
    for file in files:
        with suppress(OSError):  # it may just have gone
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
