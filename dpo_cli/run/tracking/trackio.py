"""Trackio: the project's local database, which only the user uploads."""

from __future__ import annotations

import contextlib
import os
from typing import Any, ClassVar

from dpo_cli.run.tracking.rows import Row
from dpo_cli.run.tracking.tracker import TrackedRun

_REMOTE = ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL", "TRACKIO_BUCKET_ID", "TRACKIO_WEBHOOK_URL")
"""Variables with which Trackio sends what it is given."""


class Trackio:
    """A run in Trackio's database, written anew at each start; see `Tracker`."""

    can_go_back: ClassVar[bool] = False

    def __init__(self, run: TrackedRun, state: dict[str, Any]) -> None:
        # Trackio looks up the user's name on the Hub and keeps it in the configuration.
        os.environ["HF_HUB_OFFLINE"] = "1"
        for name in _REMOTE:
            os.environ.pop(name, None)
        import trackio

        self._trackio = trackio
        # Trackio cannot replace steps, and may have lost the last ones of a killed start.
        with contextlib.suppress(ValueError):  # the project is new
            for earlier in trackio.Api().runs(run.project):
                if earlier.name == run.name:
                    earlier.delete()
        self._run = trackio.init(
            project=run.project,
            name=run.name,
            config=dict(run.config),
            resume="never",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )
        state["sent"] = -1

    def go_back(self, optimizer_step: int) -> None:
        """Do nothing: Trackio cannot replace steps."""

    def log(self, row: Row) -> None:
        """Write a row; the step of Trackio is the optimizer step."""
        metrics: dict[str, Any] = dict(row.metrics)
        if row.samples:
            text = "\n\n---\n\n".join(row.samples_as_markdown())
            metrics["eval/samples"] = self._trackio.Markdown(text)
        self._run.log(metrics, step=row.optimizer_step)

    def flush(self) -> None:
        """Do nothing: Trackio writes twice a second."""

    def finish(self) -> None:
        """Write the rest."""
        self._run.finish()
