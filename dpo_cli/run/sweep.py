"""Directory of a sweep: its grid, its profile, and the runs that belong to it.

runs/<name>.sweep/
    sweep.json  launcher.log  lock

The progress is read from the runs: `runs/<name>-A-...` is the first, `-B-` the second, and so on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpo_cli.errors import DpoError, UsageError
from dpo_cli.files import read_regular, write_text_atomically
from dpo_cli.profile.grid import Grid
from dpo_cli.profile.resolved import differences, from_tables, to_tables, to_toml
from dpo_cli.profile.schema import Profile
from dpo_cli.profile.text import show_value
from dpo_cli.run.directory import RunDirectory, make_root, safe_name
from dpo_cli.run.disk import explain_disk_errors, unreadable
from dpo_cli.run.locked_directory import LockedDirectory
from dpo_cli.run.lookup import find_runs

_NAME_CHARACTERS = 60
"""Fewer than the name of a run may have, because a letter is added to it."""
_ANOTHER = "Use the same values as before, or start another sweep with --name NAME."


@dataclass(frozen=True)
class SweepDirectory(LockedDirectory):
    """Directory of one sweep, which need not exist yet."""

    @classmethod
    def of(cls, root: Path, name: str) -> SweepDirectory:
        """Return the directory of the sweep `name` under `root`."""
        return cls(root / f"{safe_name(name)[:_NAME_CHARACTERS]}.sweep")

    @property
    def name(self) -> str:
        """Name that the user gave the sweep."""
        return self.path.name.removesuffix(".sweep")

    @property
    def designation(self) -> str:
        """See `LockedDirectory`."""
        return f"sweep {self.name}"

    @property
    def resume_hint(self) -> str:
        """See `LockedDirectory`."""
        return "Run the same command again to continue."

    @property
    def written_paths(self) -> Sequence[Path]:
        """See `LockedDirectory`."""
        return (self.path,)

    def lock_error(self, holder: str) -> DpoError:
        """See `LockedDirectory`."""
        return DpoError(
            f"{self.designation} is being run by {holder}",
            "Watch it with dpo watch, or end it with dpo stop.",
        )

    # --- grid and profile ------------------------------------------------------------------------

    def begin(self, grid: Grid, first: Profile) -> None:
        """Write grid and profile to `sweep.json`. The caller holds the lock.

        Args:
            grid: the values by key.
            first: profile of the first point; the others follow from it and the grid.
        """
        content = {"grid": grid, "profile": to_tables(first)}
        text = json.dumps(content, indent=2, ensure_ascii=False, default=str) + "\n"
        with explain_disk_errors(self.path):
            write_text_atomically(self._path, text)

    def make(self) -> None:
        """Make the directory if it does not exist."""
        with explain_disk_errors(self.path.parent):
            make_root(self.path.parent)
            self.path.mkdir(exist_ok=True)

    def require_same(self, grid: Grid, first: Profile) -> None:
        """Check that a sweep that was started has this grid and profile; see `begin`.

        Raises:
            UsageError: it has another grid or another profile.
            DpoError: `sweep.json` is damaged.
        """
        try:
            content = json.loads(read_regular(self._path))
            old_grid, old = content["grid"], from_tables(content["profile"])
        except FileNotFoundError:
            return
        except OSError as error:
            raise unreadable(self._path, error) from error
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise DpoError(
                f"{self._path} is damaged",
                "Remove the file; the runs of the sweep are not affected.",
            ) from error
        if list(old_grid.items()) != list(_plain(grid).items()):
            raise UsageError(
                f"{self.designation} was started with another grid",
                _ANOTHER,
                [f"then: {_words(old_grid)}", f"now: {_words(grid)}"],
            )
        if changes := differences(old, first):
            raise UsageError(
                f"{self.designation} was started with another profile",
                _ANOTHER,
                list(map(str, changes)),
            )

    # --- runs ------------------------------------------------------------------------------------

    def runs(self) -> dict[str, RunDirectory]:
        """Return the existing runs by letter; of several with the same letter, the newest."""
        runs: dict[str, RunDirectory] = {}
        for run in find_runs(self.path.parent):
            name, _, letter = run.profile_name.rpartition("-")
            if name == self.name:
                runs.setdefault(letter, run)
        return runs

    def create_run(self, letter: str, profile: Profile) -> RunDirectory:
        """Make the directory of the run with this letter."""
        return RunDirectory.create(self.path.parent, f"{self.name}-{letter}", to_toml(profile))

    @property
    def _path(self) -> Path:
        return self.path / "sweep.json"


def _plain(grid: Grid) -> Mapping[str, Any]:
    """Return the grid as JSON reads it back, to compare it."""
    plain: Mapping[str, Any] = json.loads(json.dumps(grid, default=str))
    return plain


def _words(grid: Grid) -> str:
    return " ".join(f"--grid '{key}={show_value(list(values))}'" for key, values in grid.items())
