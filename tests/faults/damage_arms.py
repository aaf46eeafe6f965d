"""Faults in numbers and in exports, put into a process before it starts: see `tests.faults.arms`."""

from __future__ import annotations

import math
import os
import signal
from typing import Any


def not_finite(optimizer_steps: tuple[int, ...], what: str) -> None:
    """A NaN loss, an infinite loss, or an infinite gradient of a finite loss, in these steps.

    A loss that is not finite comes in the second micro-batch of the step alone.
    """
    from dpo_cli.training.trainer import Trainer

    score = Trainer.score
    micro_batches = {"step": -1, "seen": 0}

    def spoilt(self: Trainer, batch: Any, reference: Any) -> Any:
        pairs, balance = score(self, batch, reference)
        step = self.optimizer_step + 1
        if not self.policy.training or step not in optimizer_steps:
            return pairs, balance
        if micro_batches["step"] != step:
            micro_batches.update(step=step, seen=0)
        micro_batches["seen"] += 1
        if what == "gradient":
            pairs.losses.register_hook(lambda gradient: gradient * math.inf)
        elif micro_batches["seen"] == 2:
            pairs.losses.mul_(math.nan if what == "nan" else math.inf)
        return pairs, balance

    Trainer.score = spoilt  # type: ignore[method-assign]


def kill_export(moment: str) -> None:
    """SIGKILL at a moment of an export; "write" is in the middle of the file."""
    from dpo_cli.training import export, weights

    def die(*_: Any, **__: Any) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)

    if moment == "half written":

        def half(content: Any, path: Any) -> None:
            save(content, path)
            os.truncate(path, path.stat().st_size // 2)
            die()

        save = weights._save
        weights._save = half
    elif moment == "written":
        export.load_checkpoint = die  # type: ignore[assignment]
    elif moment == "proved":
        os.replace_before = os.replace  # type: ignore[attr-defined]
        export.os.replace = die  # type: ignore[assignment]
    else:
        assert moment == "renamed"
        export.EventWriter = die  # type: ignore[assignment,misc]
