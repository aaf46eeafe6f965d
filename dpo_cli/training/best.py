"""Lowest held-out loss of a run, and the number of evaluations since."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass
class BestSoFar:
    """Lowest held-out loss of a run; saved with every checkpoint, so that a resume continues it.

    Attributes:
        loss: mean over the held-out pairs; None before the first evaluation.
        optimizer_step: steps done at that evaluation; 0 for the starting weights.
        evaluations_since: later evaluations of `eval.interval`, none of which had a lower loss.
    """

    loss: float | None = None
    optimizer_step: int = 0
    evaluations_since: int = 0

    def update(self, loss: float, optimizer_step: int, *, is_due: bool) -> bool:
        """Record an evaluation; return True if it is the best. NaN never is.

        Args:
            loss: the held-out loss.
            optimizer_step: number of optimizer steps done.
            is_due: False for an evaluation that a user requested, which does not use up patience.
        """
        # A comparison with NaN is false, so NaN neither becomes the best nor stays it.
        if loss < (float("inf") if self.loss is None else self.loss):
            self.loss, self.optimizer_step, self.evaluations_since = loss, optimizer_step, 0
            return True
        self.evaluations_since += is_due
        return False

    def why_over(self) -> str:
        """Return why a run without patience ends, for people."""
        return (
            f"no lower held-out loss in {self.evaluations_since} evaluations: the best,"
            f" {self.loss:.4f}, was after optimizer step {self.optimizer_step}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> BestSoFar:
        """Build the object that `to_dict` returned."""
        return cls(**values)
