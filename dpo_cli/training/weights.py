"""Weights that a profile names: files, directories, and checkpoints of other runs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from dpo_cli.errors import DpoError
from dpo_cli.files import sha256_file, write_atomically
from dpo_cli.models.adapted import as_quantized, merge_adapter, with_adapter
from dpo_cli.models.convert import StateDict
from dpo_cli.models.loading import ModelWeights, load_model_weights
from dpo_cli.models.spec import Architecture, architecture_of
from dpo_cli.models.trainable import trainable_of
from dpo_cli.profile.inputs import resolve_weights
from dpo_cli.profile.load import load_profile
from dpo_cli.profile.schema import Profile
from dpo_cli.run.checkpoints import Checkpoint
from dpo_cli.run.directory import RunDirectory
from dpo_cli.run.lookup import earlier_saved_run, find_run
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
        model_weights: the weights in float32, or the starting weights and the trained adapter. The
            fingerprint is that of the trained tensors.
    """

    plan: Plan
    optimizer_step: int
    model_weights: ModelWeights

    @property
    def architecture(self) -> Architecture:
        """Architecture of the weights."""
        return self.model_weights.architecture

    @cached_property
    def weights(self) -> StateDict:
        """Float32 weights with the adapter merged, under the names of the Hugging Face layout."""
        return merge_adapter(self.model_weights).state


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
        return _as_trained(_read_run(source, runs_root, copy), profile, which)
    weights = load_model_weights(Path(source), profile.model.model_dump())
    return _as_trained(weights, profile, which)


def _as_trained(
    weights: ModelWeights, profile: Profile, which: Literal["weights", "reference"]
) -> ModelWeights:
    if which == "reference":
        return weights
    if (adapter := profile.model.adapter) is not None:
        weights = with_adapter(weights, profile, adapter)
    return as_quantized(weights, profile.model.quantization)


def _read_run(source: str, runs_root: Path, copy: Path | None) -> ModelWeights:
    """Read the newest checkpoint of another run as it was at the first read."""
    if copy is None or not copy.exists():
        trained = read_trained(find_run(runs_root, source.removeprefix(RUN_PREFIX)))
        if copy is None:
            return merge_adapter(trained.model_weights)
        metadata = {"shape": json.dumps(trained.architecture.to_dict())}
        write_atomically(copy, lambda temporary: save_file(trained.weights, temporary, metadata))
    with safe_open(copy, framework="pt") as file:
        shape = json.loads(file.metadata()["shape"])
    return ModelWeights(architecture_of(shape), load_file(copy), torch.float32, sha256_file(copy))


def read_start(run: RunDirectory, profile: Profile, plan: Plan) -> ModelWeights:
    """Read the starting weights of a run.

    Args:
        run: the run.
        profile: profile of the run, with the path of the weights.
        plan: plan of the run, with their fingerprint.

    Raises:
        DpoError: the file is missing, or has other weights now.
    """
    start = read_model_weights(profile, "weights", run.path.parent, run.path)
    if start.fingerprint != plan.fingerprints["weights"]:
        raise DpoError("model.weights: the content has changed since the run began")
    return start


def read_trained(
    run: RunDirectory, overrides: Sequence[str] = (), *, best: bool = False
) -> TrainedWeights:
    """Read the newest verified checkpoint of a run, or its best one; the run may still train.

    Args:
        run: the run.
        overrides: `KEY=VALUE` for keys of its profile: an adapter needs the starting weights, too.
        best: read the best checkpoint.

    Raises:
        DpoError: the run has saved nothing yet, or keeps no best checkpoint; or the starting
            weights of an adapter are missing or have changed.
    """
    plan, newest = saved_plan(run), run.read_newest(load_weights)
    if newest is None:
        raise _nothing_saved(run)
    checkpoint, state = _read_best(run) if best else newest
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(name.encode())
        digest.update(tensor.contiguous().numpy().data)
    fingerprint = digest.hexdigest()
    profile = load_profile(run.profile_path, overrides).profile
    if profile.lora.is_on:
        start = read_start(run, profile, plan)
        both = hashlib.sha256(f"{start.fingerprint} {fingerprint}".encode()).hexdigest()
        trained = replace(trainable_of(profile, start).at(state), fingerprint=both)
    else:
        shape = architecture_of(plan.model.shape)
        trained = ModelWeights(shape, state, torch.float32, fingerprint)
    return TrainedWeights(plan, checkpoint.optimizer_step, trained)


def saved_plan(run: RunDirectory) -> Plan:
    """Return the plan of a run that has a checkpoint, which is not verified here.

    Raises:
        DpoError: the run has saved nothing yet.
    """
    plan = run.read_plan()
    if plan is None or not run.has_checkpoint:
        raise _nothing_saved(run)
    return plan


def _nothing_saved(run: RunDirectory) -> DpoError:
    remedy = f"Let it train up to its first save: {dpo_command('resume', run.designation)}"
    if earlier := earlier_saved_run(run):
        remedy += f". Or use the earlier run, which has weights: {earlier.designation}"
    return DpoError(f"{run.name} has saved nothing yet", remedy)


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
