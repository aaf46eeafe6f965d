"""Hand-made events of one step; a test sets the values that it checks."""

from __future__ import annotations

from typing import Any

from dpo_cli.run.events import Saved, StepDone


def step_done(number: int, **changes: Any) -> StepDone:
    """Return optimizer step `number`, with one micro-batch."""
    values: dict[str, Any] = {
        "step": number,
        "epoch": 1,
        "learning_rate": 1e-5,
        "losses": (0.5,),
        "metrics": {"loss": 0.5},
        "pairs": 4,
        "tokens": 100,
        "padding_tokens": 0,
        "seconds": 0.1,
        "process_bytes": 1,
        "device_bytes": 0,
    }
    return StepDone(optimizer_step=number, **{**values, **changes})


def saved(number: int, *, is_best: bool = False) -> Saved:
    """Return the event of the checkpoint after a step."""
    return Saved(
        step=number,
        optimizer_step=number,
        checkpoint=f"step-{number:08d}",
        weights="rlhf_512.pth",
        size_bytes=1,
        seconds=0.1,
        is_best=is_best,
    )
