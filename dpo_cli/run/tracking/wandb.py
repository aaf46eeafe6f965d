"""Weights & Biases: online where there is a login, else offline, to be uploaded later.

An offline directory holds the whole run, whatever earlier starts of it have sent or kept: W&B puts
an uploaded directory in the place of the run that it has under the same id.
"""

from __future__ import annotations

import contextlib
import netrc
import os
import secrets
import shlex
import shutil
from pathlib import Path
from typing import Any, ClassVar, Literal
from urllib.parse import urlsplit

from dpo_cli.profile.text import show_path
from dpo_cli.run.tracking.rows import Row
from dpo_cli.run.tracking.tracker import TrackedRun

_SERVER = "https://api.wandb.ai"
_INIT_SECONDS = 30.0
_COLLECTS_NOTHING: dict[str, Any] = {
    "console": "off",
    "disable_code": True,
    "disable_git": True,
    "disable_job_creation": True,
    "save_code": False,
    "x_disable_machine_info": True,
    "x_disable_meta": True,
    "x_disable_stats": True,
    "x_save_requirements": False,
    "host": "",
    "username": "",
    "email": "",
    "program": "",
}
"""With these W&B has what it is given, and nothing of machine, user, code or console."""


class Wandb:
    """A run of W&B, the same in each start of ours; see `Tracker`."""

    can_go_back: ClassVar[bool] = False

    def __init__(self, subject: TrackedRun, state: dict[str, Any]) -> None:
        # What it would report of itself has tracebacks, and these name paths.
        os.environ["WANDB_ERROR_REPORTING"] = "false"
        import wandb

        self._wandb = wandb
        self._folder = subject.directory / "wandb"
        self._before = set(self._folder.glob("offline-run-*"))
        state.setdefault("id", secrets.token_hex(4))
        reason = _why_offline()
        if not reason:
            try:
                self._run = self._begin(subject, state["id"], "online")
            except wandb.errors.Error as error:
                reason = f"it could not be reached ({str(error).partition(chr(10))[0]})"
                wandb.teardown()  # it holds the id
        if reason:
            self._run = self._begin(subject, state["id"], "offline")
        state["sent"] = self._run.starting_step - 1 if not reason and self._run.resumed else -1
        state["offline"] = reason
        state["upload"] = ""
        if reason:
            (folder,) = set(self._folder.glob("offline-run-*")) - self._before
            state["upload"] = shlex.join(["wandb", "sync", show_path(folder)])

    def go_back(self, optimizer_step: int) -> None:
        """Never called: W&B overwrites no step."""

    def log(self, row: Row) -> None:
        """Send a row; W&B's own step is the optimizer step."""
        figures: dict[str, Any] = {**row.figures, "train/global_step": row.optimizer_step}
        if row.samples:
            columns = list(row.samples[0])
            data = [list(sample.values()) for sample in row.samples]
            figures["eval/samples"] = self._wandb.Table(columns=columns, data=data)
        self._run.log(figures, step=row.optimizer_step)

    def flush(self) -> None:
        """Nothing: W&B sends by itself."""

    def finish(self) -> None:
        """Send what is left, and remove what earlier starts kept: it is in this one."""
        self._run.finish()
        # Its diary of this process names paths, and nobody uploads it.
        for folder in [*self._before, *self._folder.glob("*run-*/logs")]:
            shutil.rmtree(folder, ignore_errors=True)

    def _begin(self, subject: TrackedRun, run_id: str, mode: Literal["online", "offline"]) -> Any:
        settings = self._wandb.Settings(
            **_COLLECTS_NOTHING, init_timeout=_INIT_SECONDS, symlink=False
        )
        return self._wandb.init(
            dir=str(subject.directory),
            project=subject.project,
            name=subject.name,
            config=dict(subject.config),
            id=run_id,
            resume="allow",
            mode=mode,
            allow_val_change=True,
            settings=settings,
        )


def _why_offline() -> str:
    """Why nothing can be sent now; empty where there is a login."""
    if os.environ.get("WANDB_MODE", "online") != "online":
        return "WANDB_MODE is not online"
    if os.environ.get("WANDB_API_KEY"):
        return ""
    host = urlsplit(os.environ.get("WANDB_BASE_URL", _SERVER)).hostname
    for file in filter(None, [os.environ.get("NETRC"), "~/.netrc", "~/_netrc"]):
        with contextlib.suppress(OSError, netrc.NetrcParseError):
            if host in netrc.netrc(str(Path(file).expanduser())).hosts:
                return ""
    return "there is no login here"
