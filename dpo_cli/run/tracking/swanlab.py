"""SwanLab: online where there is a login, else offline, to be uploaded later.

An offline directory holds the whole run, whatever earlier starts of it have kept.
"""

from __future__ import annotations

import os
import secrets
import shlex
import shutil
from typing import Any, ClassVar

from dpo_cli.profile.text import show_path
from dpo_cli.run.tracking.rows import Row
from dpo_cli.run.tracking.tracker import TrackedRun

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
"""With these SwanLab has what it is given, and nothing of machine, user, code or console."""


class SwanLab:
    """A run of SwanLab, the same in each start of ours; see `Tracker`."""

    can_go_back: ClassVar[bool] = False

    def __init__(self, subject: TrackedRun, state: dict[str, Any]) -> None:
        import swanlab

        self._swanlab = swanlab
        self._folder = subject.directory / "swanlab"
        self._folder.mkdir(exist_ok=True)
        self._before = set(self._folder.glob("run-*"))
        state.setdefault("id", secrets.token_hex(8))
        reason = self._why_offline()
        if not reason:
            try:
                self._begin(subject, state["id"], "online")
            except Exception as error:  # it has no class of its own for these
                reason = f"it could not be reached ({str(error).partition(chr(10))[0]})"
        if reason:
            self._before = set(self._folder.glob("run-*"))
            self._begin(subject, state["id"], "offline")
        if reason or state.get("offline"):
            state["sent"] = -1
        state["offline"], state["upload"] = reason, ""
        if reason:
            (own,) = set(self._folder.glob("run-*")) - self._before
            state["upload"] = shlex.join(["swanlab", "sync", show_path(own)])

    def go_back(self, optimizer_step: int) -> None:
        """Never called: SwanLab overwrites no step."""

    def log(self, row: Row) -> None:
        """Send a row; SwanLab's own step is the optimizer step."""
        figures: dict[str, Any] = dict(row.figures)
        if row.samples:
            texts = ["\n\n".join(sample.values()) for sample in row.samples]  # type: ignore[arg-type]
            figures["eval/samples"] = [self._swanlab.Text(text) for text in texts]
        self._swanlab.log(figures, step=row.optimizer_step)

    def flush(self) -> None:
        """Nothing: SwanLab sends by itself."""

    def finish(self) -> None:
        """Send what is left, and remove what earlier starts kept: it is in this one."""
        self._swanlab.finish()
        # Its diary of this process names paths, and nobody uploads it.
        for folder in [*self._before, *self._folder.glob("run-*/debug")]:
            shutil.rmtree(folder, ignore_errors=True)

    def _begin(self, subject: TrackedRun, run_id: str, mode: str) -> None:
        self._swanlab.init(
            log_dir=str(self._folder),
            project=subject.project,
            name=subject.name,
            config=dict(subject.config),
            id=run_id,
            resume="allow",
            mode=mode,
            settings=self._swanlab.Settings(**_COLLECTS_NOTHING),
        )

    def _why_offline(self) -> str:
        """Why nothing can be sent now; empty where there is a login."""
        if os.environ.get("SWANLAB_MODE", "online") not in ("online", "cloud"):
            return "SWANLAB_MODE is not online"
        return "" if self._swanlab.Settings().api_key else "there is no login here"
