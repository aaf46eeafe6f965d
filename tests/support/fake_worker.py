"""A worker that writes events and trains nothing."""

from __future__ import annotations

from dataclasses import replace

from dpo_cli.run.plan import PlannedPairs, PlannedSteps
from tests.support.story import PLAN as STORY_PLAN
from tests.support.story import plan_source

PLAN = replace(
    STORY_PLAN,
    model=replace(STORY_PLAN.model, description="MiniMind2 512x8", parameters=1),
    pairs=PlannedPairs(kept=8, skipped_rows=0, held_out=0, held_out_skipped_rows=0),
    steps=PlannedSteps(
        micro_batches=8, micro_batches_per_epoch=8, optimizer_steps=8, accumulation_steps=1
    ),
    settings={
        "data": {"max_seq_len": 1024},
        "dpo": {"beta": 0.1, "reduction": "mean"},
        "train": {
            "learning_rate": 1e-8,
            "schedule": "minimind2",
            "layout": "packed",
            "log_interval": 1,
            "epochs": 1,
            "batch_size": 1,
        },
    },
)
WORKER = (
    plan_source(PLAN)
    + """
import sys, time
from pathlib import Path
from dpo_cli.run.event_writer import *
from dpo_cli.run.events import *
from dpo_cli.run.directory import RunDirectory
run = RunDirectory(Path(sys.argv[1]))
stream = EventWriter(run.events_path)
def stop():
    stream.append(Stopped(reason="interrupted", step=3, optimizer_step=3))
    sys.exit(130)
def refuse():
    stream.append(Failed(message="not the same data", exit_code=2))
    sys.exit(2)
def plan():
    stream.append(Planned(plan=PLAN))
def complete():
    run.mark_completed(optimizer_step=8, weights="rlhf_512.pth")
    stream.append(Completed(step=8, optimizer_step=8, weights="rlhf_512.pth"))
def wait_for_stop():
    for _ in range(12000):
        if run.take_request() == "stop":
            stop()
        time.sleep(0.05)
"""
)
