"""Progress of a run in a notebook or a script."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from dpo_cli.run.events import Event
from dpo_cli.run.thinning import read_view
from dpo_cli.ui.snapshot import notebook_display
from dpo_cli.ui.terminal.console import SafeConsole
from dpo_cli.ui.terminal.plain import PlainReport

if TYPE_CHECKING:
    from dpo_cli.api.run import Run

_DRAW_SECONDS = 1.0


class Display:
    """Progress of a run: the live panel in a notebook, plain lines elsewhere."""

    def __init__(self, run: Run) -> None:
        self._run = run
        console = SafeConsole(highlight=False, markup=False, emoji=False, soft_wrap=True)
        self._report = PlainReport(
            console,
            run.directory.designation,
            run.path,
            read_view=lambda: read_view(run.directory.events_path),
        )
        display = notebook_display()
        self._handle = display(run, display_id=True) if display else None
        self._drawn_at = 0.0

    def update(self, events: Iterator[Event], *, is_over: bool) -> None:
        """Show new events; the panel at most once a second."""
        if self._handle is None:
            for event in events:
                self._report(event)
        elif (
            is_over or time.monotonic() - self._drawn_at > _DRAW_SECONDS
        ) and self._run.path.is_dir():
            self._handle.update(self._run)
            self._drawn_at = time.monotonic()
