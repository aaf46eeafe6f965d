"""Named steps in which a worker changes checkpoints, and SIGKILL before any of them.

The steps are audit events of Python (files opened for writing, renamed, removed), flushes, and the
files that safetensors writes from native code. A kill can also hit the middle of such a file.
"""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

_RANDOM = re.compile(r"[0-9a-f]{32}")
_AUDITED = {
    "os.mkdir": "mkdir",
    "os.rename": "rename",
    "os.rmdir": "rmdir",
}


def kill_before(name: str, optimizer_step: int) -> None:
    """Send this process SIGKILL right before the step `name` of saving after `optimizer_step`."""

    def act(step: str) -> None:
        if step == name:
            os.kill(os.getpid(), signal.SIGKILL)

    _watch(optimizer_step, act)


def record(path: Path, optimizer_step: int) -> None:
    """Write the names of all steps of saving after `optimizer_step` to a file, one per line."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    _watch(optimizer_step, lambda step: os.write(descriptor, f"{step}\n".encode()) and None)


def _watch(optimizer_step: int, act: Callable[[str], None]) -> None:
    """Call `act` with the name of each step before the step, while that checkpoint is saved."""
    from dpo_cli.training import checkpointing, hooks, reference

    is_saving = is_ours = False
    unlinked = 0
    save_session, flush, write_tensors = hooks.RunHooks.save, os.fsync, checkpointing.save_file

    def save(self: Any, trainer: Any) -> None:
        nonlocal is_saving
        is_saving = trainer.optimizer_step == optimizer_step
        save_session(self, trainer)
        is_saving = False

    def reached(step: str) -> None:
        if is_saving and not is_ours:
            act(step)

    def hear(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal unlinked
        if event == "open":
            path, _, flags = arguments
            if isinstance(path, str | os.PathLike) and flags & (os.O_WRONLY | os.O_RDWR):
                reached(f"write {_named(path)}")
        elif event == "os.remove":  # numbered, because the order of a directory is arbitrary
            unlinked += is_saving
            reached(f"unlink {unlinked}")
        elif event in _AUDITED:
            reached(f"{_AUDITED[event]} {_named(arguments[0])}")

    def fsync(descriptor: int) -> None:
        reached(f"fsync {_named(os.readlink(f'/proc/self/fd/{descriptor}'))}")
        flush(descriptor)

    def save_file(tensors: Any, path: Path, *rest: Any) -> None:
        nonlocal is_ours
        reached(f"write {_named(path)}")
        write_tensors(tensors, path, *rest)
        whole = path.read_bytes()
        os.truncate(path, len(whole) // 2)
        reached(f"write half of {_named(path)}")
        is_ours = True
        path.write_bytes(whole)
        is_ours = False

    hooks.RunHooks.save = save  # type: ignore[method-assign]
    os.fsync = fsync
    checkpointing.save_file = reference.save_file = save_file
    sys.addaudithook(hear)


def _named(path: Any) -> str:
    """Return the last component of a path, with the parent inside checkpoints; no random parts."""
    path = Path(path)
    if path.parent.name == "runs":
        return "the run's directory"
    inside = path.parent.name.startswith(("tmp-", "step-"))
    name = f"{path.parent.name}/{path.name}" if inside else path.name
    return _RANDOM.sub("*", name)
