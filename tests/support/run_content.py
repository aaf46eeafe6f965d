"""Files and events of a run, for comparisons."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from dpo_cli.run.directory import RunDirectory
from dpo_cli.run.events import Alert, Event, EventReader

Content = dict[str, bytes]

ALERTS_OF_LOAD = ("cpu-contention", "slow")
"""Alerts that other processes of the machine cause."""


def content(directory: Path, *but: str) -> Content:
    """Return the content of each file under a directory by path; links are not followed."""
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and not path.is_symlink() and path.name not in but
    }


def new_events(run: RunDirectory, act: Callable[[], object]) -> list[Any]:
    """Return the events that `act` adds to the stream."""
    reader = EventReader(run.events_path)
    list(reader.read_new())
    act()
    return list(reader.read_new())


def only(events: list[Any], kind: type) -> Any:
    [event] = [event for event in events if isinstance(event, kind)]
    return event


def alerts_of(events: Iterable[Event]) -> list[Alert]:
    """Return the alerts, without those that other processes of the machine cause."""
    alerts = [event for event in events if isinstance(event, Alert)]
    return [alert for alert in alerts if alert.code not in ALERTS_OF_LOAD]
