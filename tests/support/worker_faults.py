"""Faults that are armed in a worker before it starts: see `tests.support.workers`."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dpo_cli.run.event_writer import EventWriter
from dpo_cli.run.events import Event, StepDone


def at_step(optimizer_step: int, act: Any) -> None:
    """Call a function right after the event of an optimizer step was written."""
    append = EventWriter.append

    def watched(self: EventWriter, event: Event) -> None:
        append(self, event)
        if isinstance(event, StepDone) and event.optimizer_step == optimizer_step:
            act()

    EventWriter.append = watched  # type: ignore[method-assign]


def stop_at(optimizer_step: int) -> None:
    """Send this worker SIGTERM after a step."""
    at_step(optimizer_step, lambda: os.kill(os.getpid(), signal.SIGTERM))


def kill_at(optimizer_step: int) -> None:
    """Send this worker SIGKILL after a step."""
    at_step(optimizer_step, lambda: os.kill(os.getpid(), signal.SIGKILL))


def forget(what: str) -> None:
    """Make a resume ignore a part of the checkpoint."""
    from dpo_cli.training import checkpointing, setup

    if what == "random numbers":
        checkpointing._restore_rng = lambda *_: None  # type: ignore[assignment]
    elif what == "position":
        restore = setup.restore_state

        def at_the_start(directory: Any, **parts: Any) -> int:
            restore(directory, **parts)
            return 0

        setup.restore_state = at_the_start  # type: ignore[assignment]
    elif what == "first moment":
        read = checkpointing._read

        def without_first(path: Any) -> Any:
            tensors = read(path)
            if path.stem == "exp_avg":
                return {name: tensor * 0 for name, tensor in tensors.items()}
            return tensors

        checkpointing._read = without_first
    else:
        assert what == "nothing"


def terminate_at_save(optimizer_step: int) -> None:
    """Send this worker SIGTERM while it writes a checkpoint."""
    from dpo_cli.training import saving

    save = saving.save_state

    def interrupted(directory: Any, **parts: Any) -> None:
        if parts["optimizer_step"] == optimizer_step:
            os.kill(os.getpid(), signal.SIGTERM)
        save(directory, **parts)

    saving.save_state = interrupted


def own_cache(directory: Path) -> None:
    """Use an empty cache, so that nothing is reused from other runs. This is no fault."""
    directory.mkdir(exist_ok=True)
    os.environ["DPO_CACHE_DIR"] = str(directory)


def after_file(path: Path, arm: Callable[[], object]) -> None:
    """Wait for a file to appear, then arm a fault."""
    while not path.exists():
        time.sleep(0.005)
    arm()


def without_flushing(kind: str) -> None:
    """Leave out the flushes of a kind: of files, of directories, or of the event stream."""
    fsync = os.fsync

    def some(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        is_stream = path.name == "events.jsonl"
        found = "stream" if is_stream else "directory" if path.is_dir() else "file"
        if found != kind:
            fsync(descriptor)

    os.fsync = some
