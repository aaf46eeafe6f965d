"""The weights of what a command line calls a model; `dpo_cli.run.models` tells what it is."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dpo_cli.errors import DpoError
from dpo_cli.models.architecture import Architecture, architecture_of
from dpo_cli.models.convert import StateDict
from dpo_cli.models.zoo import DTYPES, Checkpoint, load_checkpoint
from dpo_cli.profile.inputs import resolve_checkpoint
from dpo_cli.profile.load import load_profile
from dpo_cli.profile.schema import Profile
from dpo_cli.profile.text import show_path
from dpo_cli.run.generations import Generation
from dpo_cli.run.models import NamedModel
from dpo_cli.run.store import RunDirectory
from dpo_cli.training.inputs import RUN_PREFIX, read_checkpoint
from dpo_cli.training.plan import export_dtype
from dpo_cli.training.state import load_best, load_weights


@dataclass(frozen=True)
class OpenedModel:
    """A model whose weights were read.

    Attributes:
        title: what to call it on the screen.
        checkpoint: the weights; of a run those of a float32 training state.
        optimizer_step: after which a run's state is; None of a file or a folder.
        plan: of that run.
        export_dtype: the precision that they are written in, if nobody states another.
    """

    title: str
    checkpoint: Checkpoint
    optimizer_step: int | None = None
    plan: Mapping[str, Any] | None = None
    export_dtype: str = "float32"


def open_model(named: NamedModel, stated: Mapping[str, Any], *, best: bool = False) -> OpenedModel:
    """Read the weights of a run's newest state, of a file, or of a Hugging Face folder.

    Args:
        named: from `find_model`.
        stated: a profile's [model] keys, for what a file cannot tell (see `recognise`); a run and
            a folder know it themselves.
        best: take a run's best state instead.

    Raises:
        DpoError: there are no such weights, or they are damaged or not to be understood.
    """
    if named.run is not None:
        trained = read_trained(named.run, best=best)
        profile = load_profile(named.run.profile_path).profile
        born = trained.plan["model"]["weights_dtype"]
        dtype = export_dtype(profile, trained.architecture, born)
        return OpenedModel(
            named.title, trained.checkpoint, trained.optimizer_step, trained.plan, dtype
        )
    if best:
        raise DpoError(f"{named.title}: only a run has a best state", "leave --best out")
    checkpoint = load_checkpoint(named.path, {} if named.path.is_dir() else stated)
    dtype = checkpoint.dtype_name
    return OpenedModel(
        named.title, checkpoint, export_dtype=dtype if dtype in DTYPES else "float32"
    )


def open_reference(profile: Profile, runs_root: Path, run: RunDirectory | None) -> OpenedModel:
    """Read the frozen weights that a profile compares the policy with.

    Args:
        profile: names them, or else those that it starts from.
        runs_root: where `run:NAME` is looked for.
        run: whose profile it is, if it is a run's; it keeps what `run:NAME` stood for.

    Raises:
        DpoError: they are missing, damaged, or contradict the profile.
    """
    which = profile.model.compared_with
    source = resolve_checkpoint(profile, which)
    title = source if source.startswith(RUN_PREFIX) else show_path(Path(source))
    keep_in = run.path if run else None
    return OpenedModel(title, read_checkpoint(profile, which, runs_root, keep_in))


@dataclass(frozen=True)
class Trained:
    """A saved state of a run.

    Attributes:
        plan: of the run.
        optimizer_step: after which the state is.
        weights: in float32, in the Hugging Face layout.
    """

    plan: dict[str, Any]
    optimizer_step: int
    weights: StateDict

    @property
    def architecture(self) -> Architecture:
        """Of the weights."""
        return architecture_of(self.plan["model"]["shape"])

    @property
    def checkpoint(self) -> Checkpoint:
        """The weights as a file of them would be read."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.weights.items()):
            digest.update(name.encode())
            digest.update(tensor.contiguous().numpy().data)
        return Checkpoint(self.architecture, self.weights, torch.float32, digest.hexdigest())


def read_trained(run: RunDirectory, *, best: bool) -> Trained:
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
    generation, weights = _best(run) if best else newest
    return Trained(plan, generation.optimizer_step, weights)


def _best(run: RunDirectory) -> tuple[Generation, StateDict]:
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
