"""Rank that trains nothing: `python stand_in_rank.py RUN MODE`. Rank 0 writes the event stream.

Each rank waits until one of them gets a signal, and then exits with 0. The modes are faults.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

from dpo_cli.run.event_writer import EventWriter
from dpo_cli.run.events import Alert, Completed, Event, Planned, Stopped, WorkerStarted
from dpo_cli.run.processes import die_with_parent
from dpo_cli.training.worker import Signals
from tests.support.story import PLAN

RANK, ATTEMPT = int(os.environ["RANK"]), int(os.environ["TORCHELASTIC_RESTART_COUNT"])
KEPT = ("WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "OMP_NUM_THREADS", "TORCHELASTIC_ERROR_FILE")


def tell(run: Path, *events: Event) -> None:
    if RANK == 0:
        stream = EventWriter(run / "events.jsonl")
        for event in events:
            stream.append(event)
        stream.close()


def last_words(text: str) -> None:
    message = {"message": text, "extraInfo": {"timestamp": str(int(time.time()))}}
    Path(os.environ["TORCHELASTIC_ERROR_FILE"]).write_text(json.dumps({"message": message}))


def until_dead(rank: int) -> None:
    """Wait for the end of another rank, and a moment more, so that the agent sees its end first."""
    pid = json.loads(Path(sys.argv[1], f"rank-{rank}-{ATTEMPT}").read_text())["pid"]
    while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
        time.sleep(0.02)
    time.sleep(0.3)


def main() -> int:
    run, mode = Path(sys.argv[1]), sys.argv[2]
    die_with_parent()
    signals = Signals()
    (run / f"rank-{RANK}-{ATTEMPT}").write_text(
        json.dumps({"pid": os.getpid(), **{name: os.environ.get(name, "") for name in KEPT}})
    )
    started = WorkerStarted(pid=os.getpid(), device="cpu", device_name="", dtype="", versions={})
    tell(run, started)
    if mode == "early":  # like a process without signal handlers yet
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    while len(list(run.glob(f"rank-*-{ATTEMPT}"))) < int(os.environ["WORLD_SIZE"]):
        time.sleep(0.02)
    if mode != "early":
        tell(run, Planned(plan=PLAN))
    tell(run, Alert(code="ready", message=""))
    completed = Completed(step=1, optimizer_step=1, weights="w")
    if mode in ("lost", "restart") and ATTEMPT == 0:
        if RANK == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if RANK == 2:
            time.sleep(60)
        until_dead(1)
        last_words("rank 1 did not come")
        return 1
    if mode == "told":
        tell(run, completed)
        if RANK == 1:
            time.sleep(0.3)
            os.kill(os.getpid(), signal.SIGSEGV)
        return 0
    if mode == "restart":
        tell(run, completed)
        return 0
    for _ in range(400):
        if signals.stop and mode != "deaf":
            (run / f"stop-{signals.stop}").touch()  # as real ranks agree on it
        if asked := list(run.glob("stop-*")):
            tell(run, Stopped(reason=asked[0].name[5:], step=1, optimizer_step=1))
            return 0
        time.sleep(0.05)
    return 1


if __name__ == "__main__":
    sys.exit(main())
