"""Progress bar for the phases before training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)


class PhaseBar:
    """One-line progress bar of the current phase, removed on exit.

    Args:
        console: where to draw; nothing is drawn if it is not a terminal.
    """

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[amount]}"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
            redirect_stdout=False,
        )
        self._phase = ""
        self._task: TaskID | None = None

    def __enter__(self) -> PhaseBar:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Remove the bar while the block prints, and draw it again afterwards."""
        self._progress.stop()
        try:
            yield
        finally:
            self._progress.start()

    def __call__(self, phase: str, done: int, total: int, unit: str) -> None:
        """Show that `done` of `total` units are done; a total of 0 shows activity only."""
        if phase != self._phase or self._task is None:
            if self._task is not None:
                self._progress.remove_task(self._task)
            self._phase = phase
            self._task = self._progress.add_task(phase, total=total or None, amount="")
        amount = f"{done:,} of {total:,} {unit}" if total else ""
        self._progress.update(self._task, completed=done, amount=amount)
