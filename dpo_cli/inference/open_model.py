"""The weights of what a command line calls a model; `dpo_cli.run.models` tells what it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpo_cli.compute.device import DTYPES
from dpo_cli.errors import DpoError
from dpo_cli.models.loading import ModelWeights, load_model_weights
from dpo_cli.profile.inputs import resolve_weights
from dpo_cli.profile.load import load_profile
from dpo_cli.profile.schema import Profile
from dpo_cli.profile.text import show_path
from dpo_cli.run.directory import RunDirectory
from dpo_cli.run.models import NamedModel
from dpo_cli.run.plan import Plan
from dpo_cli.training.inputs import export_dtype
from dpo_cli.training.weights import RUN_PREFIX, read_model_weights, read_trained


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
    model_weights: ModelWeights
    optimizer_step: int | None = None
    plan: Plan | None = None
    export_dtype: str = "float32"


def open_model(named: NamedModel, stated: Mapping[str, Any], *, best: bool = False) -> OpenedModel:
    """Read the weights of a run's newest state, of a file, or of a Hugging Face folder.

    Args:
        named: from `find_model`.
        stated: a profile's [model] keys, for settings that a file lacks (see `infer_minimind`); not
            used for a run or a folder, which contain them.
        best: take a run's best state instead.

    Raises:
        DpoError: there are no such weights, or they are damaged or not to be understood.
    """
    if named.run is not None:
        trained = read_trained(named.run, best=best)
        profile = load_profile(named.run.profile_path).profile
        source_dtype = trained.plan.model.weights_dtype
        dtype = export_dtype(profile, trained.architecture, source_dtype)
        return OpenedModel(
            named.title, trained.model_weights, trained.optimizer_step, trained.plan, dtype
        )
    if best:
        raise DpoError(f"{named.title}: only a run has a best state", "leave --best out")
    model_weights = load_model_weights(named.path, {} if named.path.is_dir() else stated)
    dtype = model_weights.dtype_name
    return OpenedModel(
        named.title, model_weights, export_dtype=dtype if dtype in DTYPES else "float32"
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
    which = profile.model.reference_key
    source = resolve_weights(profile, which)
    title = source if source.startswith(RUN_PREFIX) else show_path(Path(source))
    keep_in = run.path if run else None
    return OpenedModel(title, read_model_weights(profile, which, runs_root, keep_in))
