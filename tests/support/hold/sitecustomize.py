"""Stop a worker at a step: see `hold_at`. Python imports this file at the start of each process.

The worker of a real `dpo` stops itself, or another rank, right after an optimizer step. A SIGSTOP
from the test could come too late on a busy machine, where the run may be over before the test is
scheduled. PYTHONPATH must have this folder.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

from dpo_cli.run.event_writer import EventWriter
from dpo_cli.run.events import Event, StepDone

_append = EventWriter.append


def _append_and_hold(self: EventWriter, event: Event) -> None:
    _append(self, event)
    is_first = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"
    held_at = int(os.environ["DPO_TEST_HOLD_AT"])
    if isinstance(event, StepDone) and event.optimizer_step == held_at and is_first:
        os.kill(_pid_of_rank(os.environ["DPO_TEST_HOLD_RANK"]), signal.SIGSTOP)


def _pid_of_rank(rank: str) -> int:
    """Return the process id of a rank: this process, or another child of the parent."""
    if rank == os.environ.get("RANK", "0"):
        return os.getpid()
    [pid] = (
        pid
        for pid in Path(f"/proc/{os.getppid()}/task/{os.getppid()}/children").read_text().split()
        if f"RANK={rank}".encode() in Path("/proc", pid, "environ").read_bytes().split(b"\0")
    )
    return int(pid)


EventWriter.append = _append_and_hold  # type: ignore[method-assign]
