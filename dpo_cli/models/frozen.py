"""A model that computes the reference: a model of its own, or the policy as it was at the start."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch

from dpo_cli.models.scoring import ResponseScorer


@dataclass(frozen=True)
class Frozen:
    """Scorer that is not trained while it is in use.

    Attributes:
        scorer: a model of its own, or the policy.
        at_start: context in which the policy computes what it did before the first step.
    """

    scorer: ResponseScorer
    at_start: Callable[[], AbstractContextManager[None]] = nullcontext

    @contextmanager
    def active(self) -> Iterator[ResponseScorer]:
        """Yield the scorer in evaluation mode and without gradients; restore its mode after."""
        was_training = self.scorer.training
        self.scorer.eval()
        try:
            with torch.no_grad(), self.at_start():
                yield self.scorer
        finally:
            if was_training:
                self.scorer.train()
