"""SwanLab: online if there is a login, else offline for a later upload.

An offline directory contains the whole run, whatever earlier starts have sent.
"""

from __future__ import annotations

import os
import secrets
import shutil
from typing import Any, ClassVar

from dpo_cli.files import glob_inside
from dpo_cli.profile.text import show_path
from dpo_cli.run.tracking.rows import Row
from dpo_cli.run.tracking.tracker import TrackedRun
from dpo_cli.shell import join

_COLLECTS_NOTHING: dict[str, Any] = {
    "probe": {
        "hardware": False,
        "runtime": False,
        "requirements": False,
        "conda": False,
        "git": False,
        "swanlab": False,
        "monitor": False,
    },
    "terminal": {"proxy_type": "none"},
    "interactive": False,
}
"""Settings with which SwanLab sends only what it is given: no machine, user, code or console."""


class SwanLab:
    """A run of SwanLab, the same for all starts of our run; see `Tracker`."""

    can_go_back: ClassVar[bool] = False

    def __init__(self, run: TrackedRun, state: dict[str, Any]) -> None:
        import swanlab

        self._swanlab = swanlab
        self._folder = run.directory / "swanlab"
        self._folder.mkdir(exist_ok=True)
        self._before = set(self._folder.glob("run-*"))
        state.setdefault("id", secrets.token_hex(8))
        reason = self._why_offline()
        if not reason:
            try:
                self._begin(run, state["id"], "online")
            except Exception as error:  # SwanLab has no error class for a failed connection
                reason = f"the service could not be reached ({str(error).partition(chr(10))[0]})"
        if reason:
            self._before = set(self._folder.glob("run-*"))
            self._begin(run, state["id"], "offline")
        if reason or state.get("offline"):
            state["sent"] = -1
        state["offline"], state["upload"] = reason, ""
        if reason:
            (own,) = set(self._folder.glob("run-*")) - self._before
            state["upload"] = join(["swanlab", "sync", show_path(own)])

    def go_back(self, optimizer_step: int) -> None:
        """Do nothing: SwanLab cannot overwrite steps."""

    def log(self, row: Row) -> None:
        """Send a row; the step of SwanLab is the optimizer step."""
        metrics: dict[str, Any] = dict(row.metrics)
        if row.samples:
            texts = ["\n\n".join(sample.values()) for sample in row.samples]  # type: ignore[arg-type]
            metrics["eval/samples"] = [self._swanlab.Text(text) for text in texts]
        self._swanlab.log(metrics, step=row.optimizer_step)

    def flush(self) -> None:
        """Do nothing: SwanLab sends by itself."""

    def finish(self) -> None:
        """Send the rest, and remove the files of earlier starts: this start contains their rows."""
        self._swanlab.finish()
        # The debug log of this process contains paths, and is not uploaded.
        for folder in [*self._before, *glob_inside(self._folder, "run-*/debug")]:
            shutil.rmtree(folder, ignore_errors=True)

    def _begin(self, run: TrackedRun, run_id: str, mode: str) -> None:
        self._swanlab.init(
            log_dir=str(self._folder),
            project=run.project,
            name=run.name,
            config=dict(run.config),
            id=run_id,
            resume="allow",
            mode=mode,
            settings=self._swanlab.Settings(**_COLLECTS_NOTHING),
        )

    def _why_offline(self) -> str:
        """Return why nothing can be sent; empty if there is a login."""
        if os.environ.get("SWANLAB_MODE", "online") not in ("online", "cloud"):
            return "SWANLAB_MODE is not online"
        return "" if self._swanlab.Settings().api_key else "no login"
