"""State of the trackers in the run directory, kept from one start of the run to the next."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dpo_cli.files import read_regular, write_text_atomically
from dpo_cli.run.directory import RunDirectory

TrackerState = dict[str, dict[str, Any]]
"""Values by tracker: `sent`, the last optimizer step it received; `resumes`, the number of resumes
it has processed; `failed`, the reason if it failed; `offline` and `upload`, the reason and the
command to upload later, if it is offline; and values of its own."""


def log_path(run: RunDirectory) -> Path:
    """Return the log of the feeder, which also locks this file so that only one feeder runs."""
    return run.path / "track.log"


def read_state(run: RunDirectory) -> TrackerState:
    """Read the state of all trackers that the run ever had; empty if the file is damaged."""
    try:
        state = json.loads(read_regular(_path(run)))
        return {str(name): dict(values) for name, values in state.items()}
    except (OSError, ValueError, AttributeError, TypeError, RecursionError):
        return {}


def write_state(run: RunDirectory, state: TrackerState) -> None:
    """Replace the state of all trackers."""
    write_text_atomically(_path(run), json.dumps(state, indent=2) + "\n")


def _path(run: RunDirectory) -> Path:
    return run.path / "track.json"
