"""Faults in numbers, evidence and exports, armed in a process before it starts."""

from __future__ import annotations

import errno
import math
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.worker_faults import own_cache


def both(first: Callable[[], object], second: Callable[[], object]) -> None:
    """Arm two faults."""
    first()
    second()


def not_finite(optimizer_steps: tuple[int, ...], what: str) -> None:
    """Give some steps a NaN loss, an infinite loss, or a finite loss with an infinite gradient.

    A loss that is not finite comes in the second micro-batch of the step alone.
    """
    from dpo_cli.training.trainer import Trainer

    score = Trainer.score
    now = {"step": -1, "micro_batches": 0}

    def spoilt(self: Trainer, batch: Any, reference: Any) -> Any:
        pairs, balance = score(self, batch, reference)
        step = self.optimizer_step + 1
        if not self.policy.training or step not in optimizer_steps:
            return pairs, balance
        if now["step"] != step:
            now.update(step=step, micro_batches=0)
        now["micro_batches"] += 1
        if what == "gradient":
            pairs.losses.register_hook(lambda gradient: gradient * math.inf)
        elif now["micro_batches"] == 2:
            pairs.losses.data.fill_(math.nan if what == "nan" else math.inf)
            pairs.losses.register_hook(lambda gradient: gradient * math.nan)
        return pairs, balance

    Trainer.score = spoilt  # type: ignore[method-assign]


def no_space_for(name: str) -> None:
    """Let the disk be full while the evidence file `name` is written, and only then."""
    from dpo_cli.training import nan_dump

    write = nan_dump.write_atomically

    def full(path: Path, fill: Callable[[Path], None]) -> None:
        def half(temporary: Path) -> None:
            fill(temporary)
            os.truncate(temporary, 1000)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        write(path, half if path.name == name else fill)

    nan_dump.write_atomically = full


def kill_export(moment: str, file: Path) -> None:
    """Send this process SIGKILL at a moment of an export to `file`."""
    from dpo_cli.export import export, verified_write
    from dpo_cli.models import saving

    def die(*_: Any, **__: Any) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)

    if moment == "before a byte is written":
        saving._save = die
    elif moment == "in the middle of the file":
        save = saving._save

        def half(content: Any, path: Path) -> None:
            save(content, path)
            os.truncate(path, path.stat().st_size // 2)
            die()

        saving._save = half
    elif moment == "before it is read back":
        verified_write.load_model_weights = die
    elif moment == "before it gets its name":
        replace = os.replace
        os.replace = lambda old, new: die() if Path(new) == file else replace(old, new)
    else:
        assert moment == "after it got its name"
        export.EventWriter = die  # type: ignore[assignment,misc]


def note_reference_rows(cache: Path, file: Path) -> None:
    """Use an empty cache, and record how many log-probs of the reference are computed."""
    from dpo_cli.training.reference import CachedReference

    own_cache(cache)
    compute = CachedReference._compute_batch

    def noted(self: CachedReference, *arguments: Any) -> None:
        unknown = int(self._values["token_logps"].isnan().sum())
        compute(self, *arguments)
        with file.open("a") as lines:
            lines.write(f"{unknown - int(self._values['token_logps'].isnan().sum())}\n")

    CachedReference._compute_batch = noted  # type: ignore[method-assign]
