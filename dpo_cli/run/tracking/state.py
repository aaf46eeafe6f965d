"""What trackers leave in a run's directory: from one start to the next, and for people to read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dpo_cli.files import write_text_atomically
from dpo_cli.run.directory import RunDirectory

TrackerState = dict[str, dict[str, Any]]
"""Of each tracker: `sent`, the last optimizer step it got; `resumes` of the run it has heard of;
`failed`, why it ended early, if it did; `upload`, the command for what was kept offline, if it was;
and its own."""


def log_path(run: RunDirectory) -> Path:
    """What the trackers' process printed; it locks the file, to be the only one."""
    return run.path / "track.log"


def read_state(run: RunDirectory) -> TrackerState:
    """What is known of each tracker that a run ever had; nothing of a damaged file."""
    try:
        state = json.loads(_path(run).read_bytes())
        return {str(name): dict(its) for name, its in state.items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


def write_state(run: RunDirectory, state: TrackerState) -> None:
    """Replace it."""
    write_text_atomically(_path(run), json.dumps(state, indent=2) + "\n")


def _path(run: RunDirectory) -> Path:
    return run.path / "track.json"
