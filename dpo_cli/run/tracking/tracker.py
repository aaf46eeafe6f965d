"""Interface of a tracker, and the description of a run that it receives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

from dpo_cli.profile.resolved import to_tables
from dpo_cli.profile.schema import KEYS, Profile
from dpo_cli.profile.table import Kind
from dpo_cli.run.directory import RunDirectory
from dpo_cli.run.tracking.rows import Row

_TABLES = ("model", "data", "dpo", "train", "eval")
_TEXTS = ("data.columns",)


@dataclass(frozen=True)
class TrackedRun:
    """Description of a run for trackers.

    Attributes:
        name: name of the run directory.
        project: project at the service.
        config: settings of the run, without paths, host names and texts.
        directory: directory for files of the trackers.
    """

    name: str
    project: str
    config: Mapping[str, Any]
    directory: Path

    @classmethod
    def of(cls, run: RunDirectory, profile: Profile) -> TrackedRun:
        """Describe a run with this profile."""
        directory = run.path.absolute()  # processes of W&B have another working directory
        return cls(run.name, profile.track.wandb_project, config_of(profile), directory)


class Tracker(Protocol):
    """Receives the rows of a run.

    The constructor gets the run and the tracker's state, a dictionary of plain values that is kept
    between starts. The feeder maintains `sent`, the last optimizer step sent; a constructor may set
    it to continue after another step (-1 for the beginning). An exception ends only this tracker.
    """

    can_go_back: ClassVar[bool]
    """True if the tracker can replace steps that a resume repeats; others get no step twice."""

    def __init__(self, run: TrackedRun, state: dict[str, Any]) -> None: ...

    def go_back(self, optimizer_step: int) -> None:
        """Discard the rows after a step."""
        ...

    def log(self, row: Row) -> None:
        """Send or write the next row."""
        ...

    def flush(self) -> None:
        """Make the rows visible to readers."""
        ...

    def finish(self) -> None:
        """Send the rest and close; no row follows."""
        ...


def config_of(profile: Profile) -> dict[str, dict[str, Any]]:
    """Return the keys of a profile that decide the result, without paths, host names and texts."""
    tables = to_tables(profile)
    return {
        table: {
            field: value
            for field, value in tables[table].items()
            if KEYS[f"{table}.{field}"].kind is Kind.PLAIN and f"{table}.{field}" not in _TEXTS
        }
        for table in _TABLES
    }
