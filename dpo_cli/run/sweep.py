"""A sweep on disk: what it is of, and which runs are its own.

runs/<name>.sweep/
    sweep.json  launcher.log  lock

How far they are, its runs say themselves: `runs/<name>-A-...` is its first, and so on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpo_cli.errors import DpoError, UsageError
from dpo_cli.files import write_text_atomically
from dpo_cli.profile.grid import Grid
from dpo_cli.profile.resolved import differences, from_tables, to_tables, to_toml
from dpo_cli.profile.schema import Profile
from dpo_cli.profile.text import show_value
from dpo_cli.run.directory import RunDirectory, make_root, safe_name
from dpo_cli.run.disk import explain_disk_errors
from dpo_cli.run.locked_directory import LockedDirectory
from dpo_cli.run.lookup import find_runs

_NAME_CHARACTERS = 60
"""Fewer than a run's name may have, which ends with a letter besides."""
_ANOTHER = "state what it was begun with, or begin another sweep: --name NAME"


@dataclass(frozen=True)
class SweepDirectory(LockedDirectory):
    """One sweep on disk; it need not exist yet."""

    @classmethod
    def of(cls, root: Path, name: str) -> SweepDirectory:
        """The sweep called `name` under `root`."""
        return cls(root / f"{safe_name(name)[:_NAME_CHARACTERS]}.sweep")

    @property
    def name(self) -> str:
        """As its user called it."""
        return self.path.name.removesuffix(".sweep")

    @property
    def designation(self) -> str:
        """See `LockedDirectory`."""
        return f"sweep {self.name}"

    @property
    def resume_hint(self) -> str:
        """See `LockedDirectory`."""
        return "the same command goes on"

    @property
    def written_paths(self) -> Sequence[Path]:
        """See `LockedDirectory`."""
        return (self.path,)

    def taken(self, holder: str) -> DpoError:
        """See `LockedDirectory`."""
        return DpoError(
            f"{self.designation} is being run by {holder}", "watch it: dpo watch; end it: dpo stop"
        )

    # --- what it is of ---------------------------------------------------------------------------

    def begin(self, grid: Grid, first: Profile) -> None:
        """Write down what the sweep is of; for the holder of the lock.

        Args:
            grid: the values by key.
            first: the profile of the first point, from which those of the others follow.
        """
        facts = {"grid": grid, "profile": to_tables(first)}
        text = json.dumps(facts, indent=2, ensure_ascii=False, default=str) + "\n"
        with explain_disk_errors(self.path):
            write_text_atomically(self._facts_path, text)

    def make(self) -> None:
        """Make the directory, if it is not there."""
        with explain_disk_errors(self.path.parent):
            make_root(self.path.parent)
            self.path.mkdir(exist_ok=True)

    def refuse_another(self, grid: Grid, first: Profile) -> None:
        """Hold a sweep that has begun to what it is of; see `begin`.

        Raises:
            UsageError: it has another grid, or another profile.
            DpoError: what was written down is damaged.
        """
        try:
            facts = json.loads(self._facts_path.read_bytes())
            old_grid, old = facts["grid"], from_tables(facts["profile"])
        except FileNotFoundError:
            return
        except (ValueError, KeyError, TypeError) as error:
            raise DpoError(
                f"{self._facts_path} is damaged",
                "remove it: which runs are done, they say themselves",
            ) from error
        if list(old_grid.items()) != list(_plain(grid).items()):
            raise UsageError(
                f"{self.designation} was begun with another grid",
                _ANOTHER,
                [f"then: {_words(old_grid)}", f"now: {_words(grid)}"],
            )
        if changes := differences(old, first):
            raise UsageError(
                f"{self.designation} was begun with another profile",
                _ANOTHER,
                list(map(str, changes)),
            )

    # --- its runs --------------------------------------------------------------------------------

    def runs(self) -> dict[str, RunDirectory]:
        """The runs there are by letter, of several with one letter the newest."""
        found: dict[str, RunDirectory] = {}
        for run in find_runs(self.path.parent):
            name, _, letter = run.profile_name.rpartition("-")
            if name == self.name:
                found.setdefault(letter, run)
        return found

    def create_run(self, letter: str, profile: Profile) -> RunDirectory:
        """Make the directory of the run with this letter."""
        return RunDirectory.create(self.path.parent, f"{self.name}-{letter}", to_toml(profile))

    @property
    def _facts_path(self) -> Path:
        return self.path / "sweep.json"


def _plain(grid: Grid) -> Mapping[str, Any]:
    """A grid as it comes back from JSON."""
    plain: Mapping[str, Any] = json.loads(json.dumps(grid, default=str))
    return plain


def _words(grid: Grid) -> str:
    return " ".join(f"--grid '{key}={show_value(list(values))}'" for key, values in grid.items())
