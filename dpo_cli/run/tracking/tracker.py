"""What a tracker is to the process that feeds it, and what it may know of a run."""

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
    """A run as its trackers see it.

    Attributes:
        name: of the run's directory.
        project: where it belongs.
        config: what was trained and how, without paths, host names or texts.
        directory: where trackers may keep files.
    """

    name: str
    project: str
    config: Mapping[str, Any]
    directory: Path

    @classmethod
    def of(cls, run: RunDirectory, profile: Profile) -> TrackedRun:
        """A run with this profile."""
        directory = run.path.absolute()  # W&B's processes work elsewhere
        return cls(run.name, profile.track.wandb_project, config_of(profile), directory)


class Tracker(Protocol):
    """Something that gets the rows of a run.

    Made of the run and of its own state, a dictionary that outlives the process; what it puts
    there must be plain values. `sent`, the last optimizer step that it got, is kept by its feeder;
    one that is to go on behind another step states that when it is made, -1 for the beginning.
    Whatever it raises ends it, and nothing else.
    """

    can_go_back: ClassVar[bool]
    """Whether it forgets, when told so, what a resume did again. Others get no step twice."""

    def __init__(self, subject: TrackedRun, state: dict[str, Any]) -> None: ...

    def go_back(self, optimizer_step: int) -> None:
        """Forget what came behind a step."""
        ...

    def log(self, row: Row) -> None:
        """Take the next row."""
        ...

    def flush(self) -> None:
        """Let go of what was taken."""
        ...

    def finish(self) -> None:
        """Send what is left; nothing more will come."""
        ...


def config_of(profile: Profile) -> dict[str, dict[str, Any]]:
    """The keys of a profile that say what is computed: no path, no host's name, no free text."""
    tables = to_tables(profile)
    return {
        table: {
            field: value
            for field, value in tables[table].items()
            if KEYS[f"{table}.{field}"].kind is Kind.PLAIN and f"{table}.{field}" not in _TEXTS
        }
        for table in _TABLES
    }
