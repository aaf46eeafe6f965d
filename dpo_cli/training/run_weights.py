"""What a run has come to: the weights of its newest state, or of its best one."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch

from dpo_cli.errors import DpoError
from dpo_cli.models.convert import StateDict
from dpo_cli.models.loading import ModelWeights
from dpo_cli.models.spec import Architecture, architecture_of
from dpo_cli.run.checkpoints import Checkpoint
from dpo_cli.run.directory import RunDirectory
from dpo_cli.run.plan import Plan
from dpo_cli.training.checkpointing import load_best, load_weights


@dataclass(frozen=True)
class Trained:
    """A saved state of a run.

    Attributes:
        plan: of the run.
        optimizer_step: after which the state is.
        weights: in float32, in the Hugging Face layout.
    """

    plan: Plan
    optimizer_step: int
    weights: StateDict

    @property
    def architecture(self) -> Architecture:
        """Of the weights."""
        return architecture_of(self.plan.model.shape)

    @property
    def model_weights(self) -> ModelWeights:
        """The weights as a file of them would be read."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.weights.items()):
            digest.update(name.encode())
            digest.update(tensor.contiguous().numpy().data)
        return ModelWeights(self.architecture, self.weights, torch.float32, digest.hexdigest())


def read_trained(run: RunDirectory, *, best: bool = False) -> Trained:
    """The newest verified state of a run, or its best one; it may still be training.

    Raises:
        DpoError: nothing is saved yet, or no best state is kept.
    """
    plan, newest = run.read_plan(), run.read_newest(load_weights)
    if plan is None or newest is None:
        raise DpoError(
            f"{run.name} has saved nothing yet",
            f"let it train up to its first save: dpo resume {run.name}",
        )
    checkpoint, weights = _best(run) if best else newest
    return Trained(plan, checkpoint.optimizer_step, weights)


def _best(run: RunDirectory) -> tuple[Checkpoint, StateDict]:
    """The best state that the newest one knows of, and its weights."""
    newest = run.read_newest(load_best)
    step = newest[1].optimizer_step if newest else 0
    if newest and newest[1].loss is None:
        problem, remedy = "it has no held-out pairs", "take the newest state: without --best"
    elif not step:
        problem = "no evaluation was better than the one before the first step"
        remedy = "the checkpoint it began with is the best; or take the newest: without --best"
    elif (kept := run.read_verified(step, load_weights)) is not None:
        return kept
    else:
        problem = f"the state after optimizer step {step} is not kept, or damaged"
        remedy = "eval.keep_best = true keeps it; take the newest state: without --best"
    raise DpoError(f"{run.name} has no best state: {problem}", remedy)
