"""Weights that a profile names: files, directories, and checkpoints of other runs."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from dpo_cli.errors import DpoError
from dpo_cli.files import sha256_file, write_atomically
from dpo_cli.models.convert import StateDict
from dpo_cli.models.loading import ModelWeights, load_model_weights
from dpo_cli.models.spec import Architecture, architecture_of
from dpo_cli.profile.inputs import resolve_weights
from dpo_cli.profile.schema import Profile
from dpo_cli.run.checkpoints import Checkpoint
from dpo_cli.run.directory import RunDirectory
from dpo_cli.run.lookup import find_run
from dpo_cli.run.plan import Plan
from dpo_cli.shell import dpo_command
from dpo_cli.training.checkpointing import load_best, load_weights

RUN_PREFIX = "run:"


@dataclass(frozen=True)
class TrainedWeights:
    """Weights of a checkpoint.

    Attributes:
        plan: plan of the run.
        optimizer_step: number of optimizer steps that made the weights.
        weights: float32, under the names of the Hugging Face layout.
    """

    plan: Plan
    optimizer_step: int
    weights: StateDict

    @property
    def architecture(self) -> Architecture:
        """Architecture of the weights."""
        return architecture_of(self.plan.model.shape)

    @property
    def model_weights(self) -> ModelWeights:
        """The weights as if they had been read from a file; the fingerprint hashes the tensors."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.weights.items()):
            digest.update(name.encode())
            digest.update(tensor.contiguous().numpy().data)
        return ModelWeights(self.architecture, self.weights, torch.float32, digest.hexdigest())


def read_model_weights(
    profile: Profile,
    which: Literal["weights", "reference"],
    runs_root: Path,
    keep_in: Path | None = None,
) -> ModelWeights:
    """Read the weights of `model.weights` or `model.reference`.

    Args:
        profile: names the weights.
        which: the key of [model].
        runs_root: directory in which `run:NAME` is looked up.
        keep_in: directory for a copy of the weights of `run:NAME`. Once it is there, the copy is
            read instead: the other run may train on.

    Raises:
        DpoError: the weights are missing, damaged, or contradict the profile.
    """
    source = resolve_weights(profile, which)
    if source.startswith(RUN_PREFIX):
        copy = keep_in / f"{which}.safetensors" if keep_in else None
        return _read_run(source, runs_root, copy)
    return load_model_weights(Path(source), profile.model.model_dump())


def _read_run(source: str, runs_root: Path, copy: Path | None) -> ModelWeights:
    """Read the newest checkpoint of another run as it was at the first read."""
    if copy is None or not copy.exists():
        trained = read_trained(find_run(runs_root, source.removeprefix(RUN_PREFIX)))
        if copy is None:
            return trained.model_weights
        metadata = {"shape": json.dumps(trained.architecture.to_dict())}
        write_atomically(copy, lambda temporary: save_file(trained.weights, temporary, metadata))
    with safe_open(copy, framework="pt") as file:
        shape = json.loads(file.metadata()["shape"])
    return ModelWeights(architecture_of(shape), load_file(copy), torch.float32, sha256_file(copy))


def read_trained(run: RunDirectory, *, best: bool = False) -> TrainedWeights:
    """Read the newest verified checkpoint of a run, or its best one; the run may still train.

    Raises:
        DpoError: the run has saved nothing yet, or keeps no best checkpoint.
    """
    plan, newest = run.read_plan(), run.read_newest(load_weights)
    if plan is None or newest is None:
        raise DpoError(
            f"{run.name} has saved nothing yet",
            f"Let it train up to its first save: {dpo_command('resume', run.name)}",
        )
    checkpoint, weights = _read_best(run) if best else newest
    return TrainedWeights(plan, checkpoint.optimizer_step, weights)


def _read_best(run: RunDirectory) -> tuple[Checkpoint, StateDict]:
    """Read the checkpoint with the lowest held-out loss, as the newest checkpoint records it."""
    newest = run.read_newest(load_best)
    step = newest[1].optimizer_step if newest else 0
    if newest and newest[1].loss is None:
        problem, remedy = "it has no held-out pairs", "Use the newest checkpoint instead."
    elif not step:
        problem = "no evaluation was better than the one before the first step"
        remedy = "Use the starting weights, which are the best, or the newest checkpoint."
    elif (kept := run.read_verified(step, load_weights)) is not None:
        return kept
    else:
        problem = f"the checkpoint after optimizer step {step} is not kept, or damaged"
        remedy = "Train with eval.keep_best = true to keep it, or use the newest checkpoint."
    raise DpoError(f"{run.name} has no best checkpoint: {problem}", remedy)
