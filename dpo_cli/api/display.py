"""Progress of a run in a notebook or a script."""

from __future__ import annotations

import time
from collections.abc import Iterator

from dpo_cli.run.directory import RunDirectory
from dpo_cli.run.events import Event
from dpo_cli.run.thinning import read_view
from dpo_cli.ui.snapshot import notebook_display
from dpo_cli.ui.terminal.console import line_console
from dpo_cli.ui.terminal.plain import PlainReport

_DRAW_SECONDS = 1.0


class Display:
    """Progress of a run: the live panel in a notebook, plain lines elsewhere.

    Args:
        directory: directory of the run.
        shown: object that a notebook shows as the panel.
    """

    def __init__(self, directory: RunDirectory, shown: object) -> None:
        self._directory = directory
        self._shown = shown
        console = line_console()
        self._report = PlainReport(
            console,
            directory.designation,
            directory.path,
            read_view=lambda: read_view(directory.events_path),
        )
        display = notebook_display()
        self._handle = display(shown, display_id=True) if display else None
        self._drawn_at = 0.0

    def update(self, events: Iterator[Event], *, is_over: bool) -> None:
        """Show new events; the panel at most once a second."""
        if self._handle is None:
            for event in events:
                self._report(event)
        elif (
            is_over or time.monotonic() - self._drawn_at > _DRAW_SECONDS
        ) and self._directory.path.is_dir():
            self._handle.update(self._shown)
            self._drawn_at = time.monotonic()
