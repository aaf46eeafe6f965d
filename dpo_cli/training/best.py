"""Which state of a run is the best on the held-out pairs, and how long ago that was."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass
class BestSoFar:
    """The lowest held-out loss of a run; saved with every state, so that a resume goes on with it.

    Attributes:
        loss: the mean over the held-out pairs; None before the first evaluation.
        optimizer_step: after which it was measured; 0 is the checkpoint that the run began with.
        evaluations_since: of those that `eval.interval` asks for, how many came after it.
    """

    loss: float | None = None
    optimizer_step: int = 0
    evaluations_since: int = 0

    def take(self, loss: float, optimizer_step: int, *, is_due: bool) -> bool:
        """Learn of an evaluation; whether it is the best. A loss that is no number never is.

        Args:
            loss: the held-out loss.
            optimizer_step: after which it was measured.
            is_due: not one that a user asked for in between, which tries nobody's patience.
        """
        if loss < (float("inf") if self.loss is None else self.loss):
            self.loss, self.optimizer_step, self.evaluations_since = loss, optimizer_step, 0
            return True
        self.evaluations_since += is_due
        return False

    def why_over(self) -> str:
        """Why a run that lost its patience is over, in words."""
        return (
            f"no lower held-out loss in {self.evaluations_since} evaluations: the best,"
            f" {self.loss:.4f}, was after optimizer step {self.optimizer_step}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> BestSoFar:
        """What `to_dict` gave."""
        return cls(**values)
