"""Weights & Biases: online if there is a login, else offline for a later upload.

An offline directory contains the whole run, whatever earlier starts have sent: W&B replaces the
run with the same id by an uploaded directory.
"""

from __future__ import annotations

import contextlib
import netrc
import os
import secrets
import shutil
from typing import Any, ClassVar, Literal
from urllib.parse import urlsplit

from dpo_cli.files import expanded, glob_inside
from dpo_cli.profile.text import show_path
from dpo_cli.run.tracking.rows import Row
from dpo_cli.run.tracking.tracker import TrackedRun
from dpo_cli.shell import join

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
"""Settings with which W&B sends only what it is given: no machine, user, code or console."""


class Wandb:
    """A run of W&B, the same for all starts of our run; see `Tracker`."""

    can_go_back: ClassVar[bool] = False

    def __init__(self, run: TrackedRun, state: dict[str, Any]) -> None:
        # Its error reports contain tracebacks, which contain paths.
        os.environ["WANDB_ERROR_REPORTING"] = "false"
        import wandb

        self._wandb = wandb
        self._folder = run.directory / "wandb"
        self._before = set(self._folder.glob("offline-run-*"))
        state.setdefault("id", secrets.token_hex(4))
        reason = _why_offline()
        if not reason:
            try:
                self._run = self._begin(run, state["id"], "online")
            except wandb.errors.Error as error:
                reason = f"the service could not be reached ({str(error).partition(chr(10))[0]})"
                wandb.teardown()  # else the id stays in use
        if reason:
            self._run = self._begin(run, state["id"], "offline")
        state["sent"] = self._run.starting_step - 1 if not reason and self._run.resumed else -1
        state["offline"] = reason
        state["upload"] = ""
        if reason:
            (folder,) = set(self._folder.glob("offline-run-*")) - self._before
            state["upload"] = join(["wandb", "sync", show_path(folder)])

    def go_back(self, optimizer_step: int) -> None:
        """Do nothing: W&B cannot overwrite steps."""

    def log(self, row: Row) -> None:
        """Send a row; the step of W&B is the optimizer step."""
        metrics: dict[str, Any] = {**row.metrics, "train/global_step": row.optimizer_step}
        if row.samples:
            columns = list(row.samples[0])
            data = [list(sample.values()) for sample in row.samples]
            metrics["eval/samples"] = self._wandb.Table(columns=columns, data=data)
        self._run.log(metrics, step=row.optimizer_step)

    def flush(self) -> None:
        """Do nothing: W&B sends by itself."""

    def finish(self) -> None:
        """Send the rest, and remove the files of earlier starts: this start contains their rows."""
        self._run.finish()
        # The debug log of this process contains paths, and is not uploaded.
        for folder in [*self._before, *glob_inside(self._folder, "*run-*/logs")]:
            shutil.rmtree(folder, ignore_errors=True)

    def _begin(self, run: TrackedRun, run_id: str, mode: Literal["online", "offline"]) -> Any:
        settings = self._wandb.Settings(
            **_COLLECTS_NOTHING, init_timeout=_INIT_SECONDS, symlink=False
        )
        return self._wandb.init(
            dir=str(run.directory),
            project=run.project,
            name=run.name,
            config=dict(run.config),
            id=run_id,
            resume="allow",
            mode=mode,
            allow_val_change=True,
            settings=settings,
        )


def _why_offline() -> str:
    """Return why nothing can be sent; empty if there is a login."""
    if os.environ.get("WANDB_MODE", "online") != "online":
        return "WANDB_MODE is not online"
    if os.environ.get("WANDB_API_KEY"):
        return ""
    host = urlsplit(os.environ.get("WANDB_BASE_URL", _SERVER)).hostname
    for file in filter(None, [os.environ.get("NETRC"), "~/.netrc", "~/_netrc"]):
        with contextlib.suppress(OSError, netrc.NetrcParseError):
            if host in netrc.netrc(str(expanded(file))).hosts:
                return ""
    return "no login"
