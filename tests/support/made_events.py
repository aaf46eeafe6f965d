"""Events of one step of a run that never was; a test gives the values that it is about."""

from __future__ import annotations

from typing import Any

from dpo_cli.run.events import Saved, StepDone


def step_done(number: int, **changes: Any) -> StepDone:
    """Optimizer step `number`, of one micro-batch."""
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
    """The checkpoint after a step."""
    return Saved(
        step=number,
        optimizer_step=number,
        checkpoint=f"step-{number:08d}",
        weights="rlhf_512.pth",
        size_bytes=1,
        seconds=0.1,
        is_best=is_best,
    )
