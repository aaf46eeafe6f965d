"""Run directory: the paths of its files, how they are written, and the lock.

runs/<name>-<yyyymmdd-hhmmss>-<4 hex>/
    profile.toml  plan.json  events.jsonl  worker.log  launcher.log  control-*  lock
    checkpoints/  skipped_rows.jsonl  COMPLETED
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from dpo_cli.errors import DpoError, UsageError
from dpo_cli.files import fsync_path, glob_inside, leftovers, read_regular, write_text_atomically
from dpo_cli.profile.folder import TEMPLATES
from dpo_cli.run import checkpoints
from dpo_cli.run.checkpoints import Checkpoint
from dpo_cli.run.disk import explain_disk_errors, unreadable
from dpo_cli.run.locked_directory import LockedDirectory
from dpo_cli.run.plan import OtherVersionError, Plan
from dpo_cli.shell import dpo_command

Content = TypeVar("Content")

_EARLIER_CHECKPOINTS = "generations"
"""Directory of the checkpoints before plans had a version."""

NON_FINITE_DIRECTORY = "non_finite"
"""Directory for the inputs of steps whose loss or gradient was not finite."""

REQUESTS = ("stop", "save", "evaluate")
"""Requests to a worker, the most urgent first."""

_DIRECTORY_NAME = re.compile(r"(?P<name>.+)-(?P<created>\d{8}-\d{6}-[0-9a-f]{4})")
_NAME_CHARACTERS = 64
"""Maximum length of a name: at 3 bytes a character, a file name of 255 bytes has room for it."""


def runs_root(option: Path | None) -> Path:
    """Return the directory of the runs: `--runs-dir`, else `DPO_RUNS_DIR`, else `./runs`."""
    return option or Path(os.environ.get("DPO_RUNS_DIR") or "runs")


@dataclass(frozen=True)
class RunDirectory(LockedDirectory):
    """One run on disk. Files are replaced atomically; only the event stream is appended to."""

    @classmethod
    def create(cls, root: Path, name: str, profile_toml: str) -> RunDirectory:
        """Make the directory of a new run under `root` and write its profile.

        Raises:
            NoSpaceError: the disk is full; nothing is left behind.
            DpoError: `root` cannot be written; nothing is left behind.
        """
        with explain_disk_errors(root):
            make_root(root)
            run = cls(_new_directory(root, safe_name(name)))
            try:
                run.checkpoints_path.mkdir()
                run.write_profile(profile_toml)
                fsync_path(root)
            except BaseException:
                run.remove()
                raise
        return run

    @property
    def name(self) -> str:
        """Name of the directory."""
        return self.path.name

    @property
    def profile_name(self) -> str:
        """Name that the user gave the run, without the time of its creation."""
        match = _DIRECTORY_NAME.fullmatch(self.name)
        return match["name"] if match else self.name

    @property
    def created(self) -> str:
        """Time of creation from the directory name, sortable; empty if it was renamed."""
        match = _DIRECTORY_NAME.fullmatch(self.name)
        return match["created"] if match else ""

    @property
    def designation(self) -> str:
        """Argument for `dpo resume` and other commands: the name, or the path outside ./runs."""
        is_in_default_root = self.path.parent.resolve() == runs_root(None).resolve()
        return self.name if is_in_default_root else str(self.path)

    @property
    def profile_path(self) -> Path:
        """Resolved profile; a directory with this file is a run."""
        return self.path / "profile.toml"

    @property
    def plan_path(self) -> Path:
        """Plan with the fingerprints of the inputs."""
        return self.path / "plan.json"

    @property
    def events_path(self) -> Path:
        """Event stream."""
        return self.path / "events.jsonl"

    @property
    def worker_log_path(self) -> Path:
        """Output of the workers."""
        return self.path / "worker.log"

    @property
    def checkpoints_path(self) -> Path:
        """Directory of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def skipped_rows_path(self) -> Path:
        """Skipped rows, with line and reason."""
        return self.path / "skipped_rows.jsonl"

    @property
    def held_out_path(self) -> Path:
        """Metrics of each held-out pair; see `dpo_cli.run.held_out_scores`."""
        return self.path / "held_out"

    @property
    def nan_dump_path(self) -> Path:
        """Inputs of steps whose loss or gradient was not finite."""
        return self.path / NON_FINITE_DIRECTORY

    @property
    def completed_path(self) -> Path:
        """Completion mark, written last: every planned step is done and saved."""
        return self.path / "COMPLETED"

    # --- profile, plan and completion mark --------------------------------------------------------

    def write_profile(self, text: str) -> None:
        """Replace the resolved profile."""
        self._write(self.profile_path, text)

    def read_profile(self) -> str:
        """Read the resolved profile, as TOML."""
        return self.profile_path.read_text(encoding="utf-8")

    def write_plan(self, plan: Plan) -> None:
        """Replace the plan."""
        text = json.dumps(plan.to_dict(), indent=2, ensure_ascii=False)
        self._write(self.plan_path, text + "\n")

    def read_plan(self) -> Plan | None:
        """Read the plan; None if the run was never planned.

        Raises:
            DpoError: the file is damaged or cannot be read, or another version of dpo wrote it.
        """
        try:
            return Plan.from_json(read_regular(self.plan_path), str(self.plan_path))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise unreadable(self.plan_path, error) from error

    def require_this_version(self) -> None:
        """Check that this version of dpo can read the run.

        Raises:
            OtherVersionError: another version wrote it.
        """
        if (self.path / _EARLIER_CHECKPOINTS).is_dir():
            raise OtherVersionError(self.designation)
        try:
            self.read_plan()
        except OtherVersionError:
            raise
        except DpoError:  # damage is an error only where the plan is needed
            pass

    @property
    def is_of_other_version(self) -> bool:
        """Return True if another version of dpo wrote the run."""
        try:
            self.require_this_version()
        except OtherVersionError:
            return True
        return False

    @property
    def is_completed(self) -> bool:
        """Return True if every planned step is done and saved."""
        return self.completed_path.exists()

    @property
    def completed_steps(self) -> int | None:
        """Optimizer steps of a completed run; fewer than planned after early stopping."""
        try:
            return int(json.loads(read_regular(self.completed_path))["optimizer_step"])
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
            return None

    def mark_completed(self, *, optimizer_step: int, weights: str) -> None:
        """Write the completion mark: `optimizer_step` updates, the result in the file `weights`."""
        content = {"optimizer_step": optimizer_step, "weights": weights}
        self._write(self.completed_path, json.dumps(content, indent=2) + "\n")

    def clear_completed(self) -> Callable[[], None]:
        """Remove the completion mark, to continue a run; the returned function restores it."""
        if not self.is_completed:
            return lambda: None
        content = self.completed_path.read_text(encoding="utf-8")
        with explain_disk_errors(self.path):
            self.completed_path.unlink()
            fsync_path(self.path)
        return lambda: self._write(self.completed_path, content)

    def remove_leftovers(self) -> None:
        """Remove unfinished files of killed workers; only for the holder of the lock.

        Requests and exports are not written by workers, so they may be in progress and stay.
        """
        for path in self.torn_files():
            path.unlink(missing_ok=True)

    def torn_files(self) -> Iterator[Path]:
        """Find unfinished files of killed workers, in the run and in its model folders."""
        folders = [config.parent for config in glob_inside(self.path, "*/config.json")]
        templates = glob_inside(self.path, f"*/{TEMPLATES}")
        folders += [path for path in templates if not path.is_symlink()]
        for directory in (self.path, self.held_out_path, *folders):
            for path, name in leftovers(directory):
                if not name.startswith(("control-", ".")):
                    yield path
            yield from directory.glob(".tmp??????")  # temporary files of safetensors

    def remove(self) -> None:
        """Remove the directory of a run that never started."""
        shutil.rmtree(self.path, ignore_errors=True)

    def _write(self, path: Path, text: str) -> None:
        with explain_disk_errors(self.path):
            write_text_atomically(path, text)

    # --- checkpoints -----------------------------------------------------------------------------

    @property
    def has_checkpoint(self) -> bool:
        """Return True if the run was planned and has a checkpoint, which is not verified here."""
        return self.plan_path.exists() and bool(checkpoints.list_checkpoints(self.checkpoints_path))

    def commit_checkpoint(
        self,
        optimizer_step: int,
        write: Callable[[Path], None],
        *,
        keep: int = 2,
        best: int | None = None,
    ) -> Checkpoint:
        """Save a checkpoint; see `checkpoints.commit`."""
        return checkpoints.commit(
            self.checkpoints_path, optimizer_step, write, keep=keep, best=best
        )

    def newest_verified(self) -> tuple[Checkpoint | None, list[str]]:
        """Return the newest intact checkpoint, and a sentence for each newer one that is not."""
        return checkpoints.newest_verified(self.checkpoints_path)

    def read_newest(self, read: Callable[[Path], Content]) -> tuple[Checkpoint, Content] | None:
        """Read the newest intact checkpoint; None if there are no checkpoints.

        Args:
            read: reads the directory of a checkpoint.

        Raises:
            DpoError: there are checkpoints, and none of them can be used.
        """
        while True:
            checkpoint, passed_over = self.newest_verified()
            if checkpoint is None:
                if passed_over:
                    raise DpoError(
                        f"{self.name}: no checkpoint can be used",
                        "Restore one from a backup, or start a new run.",
                        passed_over,
                    )
                return None
            try:
                content = read(checkpoint.path)
                checkpoint.require_unchanged()
                return checkpoint, content
            except FileNotFoundError:
                # A run that trains may remove a checkpoint after it was verified; then the next.
                if checkpoint.path.exists():
                    raise

    def read_verified(
        self, optimizer_step: int, read: Callable[[Path], Content]
    ) -> tuple[Checkpoint, Content] | None:
        """Read the checkpoint after a step; None if it does not exist or is not intact."""
        checkpoint = checkpoints.verified(self.checkpoints_path, optimizer_step)
        if checkpoint is None:
            return None
        with contextlib.suppress(FileNotFoundError):  # a run that trains removed it
            content = read(checkpoint.path)
            checkpoint.require_unchanged()
            return checkpoint, content
        return None

    # --- lock ------------------------------------------------------------------------------------

    def lock_error(self, holder: str) -> DpoError:
        """See `LockedDirectory`."""
        return DpoError(
            f"{self.designation} is being trained by {holder}",
            f"Stop it first: {dpo_command('stop', self.designation)}",
        )

    @property
    def resume_hint(self) -> str:
        """See `LockedDirectory`."""
        return f"Continue with: {dpo_command('resume', self.designation)}"

    @property
    def written_paths(self) -> Sequence[Path]:
        """See `LockedDirectory`."""
        return self.path, self.checkpoints_path

    # --- requests to a running worker ------------------------------------------------------------

    def put_request(self, word: str) -> None:
        """Send one of `REQUESTS` to the worker, which checks for requests at each step."""
        if word not in REQUESTS:
            raise ValueError(f"not a request: {word}")
        self._write(self._request_path(word), "")

    def is_requested(self, word: str) -> bool:
        """Return True if the request waits."""
        return self._request_path(word).exists()

    def take_request(self) -> str | None:
        """Remove and return the most urgent request; None if there is none.

        Each request has its own file, so that none replaces another.
        """
        for word in REQUESTS:
            with contextlib.suppress(FileNotFoundError):
                self._request_path(word).unlink()
                return word
        return None

    def _request_path(self, word: str) -> Path:
        return self.path / f"control-{word}"


def make_root(root: Path) -> None:
    """Make the directory of the runs if it does not exist; UsageError if a file has its name."""
    try:
        root.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise UsageError(
            f"{root} cannot be the directory of the runs: a file is in the way",
            "Choose another directory with --runs-dir.",
        ) from error


def _new_directory(root: Path, name: str) -> Path:
    """Make a directory whose name sorts by time; the hex digits are the fraction of the second."""
    while True:
        now = time.time()
        stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(now))
        path = root / f"{name}-{stamp}-{int(now % 1 * 0x10000):04x}"
        try:
            path.mkdir()
        except FileExistsError:
            continue
        return path


def safe_name(name: str) -> str:
    """Return `name` as one path component that cannot leave its directory."""
    return re.sub(r"[^\w.-]+", "-", name).strip("-.")[:_NAME_CHARACTERS] or "run"
