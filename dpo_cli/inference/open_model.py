"""Weights of a model that a command line names, see `dpo_cli.run.models`."""

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
from dpo_cli.profile.text import show_model
from dpo_cli.run.directory import RunDirectory
from dpo_cli.run.models import NamedModel
from dpo_cli.run.plan import Plan
from dpo_cli.training.inputs import export_dtype
from dpo_cli.training.weights import RUN_PREFIX, read_model_weights, read_trained


@dataclass(frozen=True)
class OpenedModel:
    """Loaded model.

    Attributes:
        title: name on the screen.
        model_weights: the weights; for a run, those of its float32 training state.
        optimizer_step: step of the run's checkpoint; None for a file or folder.
        plan: plan of the run; None for a file or folder.
        export_dtype: default dtype of an export.
    """

    title: str
    model_weights: ModelWeights
    optimizer_step: int | None = None
    plan: Plan | None = None
    export_dtype: str = "float32"


def open_model(
    named: NamedModel, settings: Mapping[str, Any], *, best: bool = False
) -> OpenedModel:
    """Load the weights of a run's newest checkpoint, of a file, or of a Hugging Face folder.

    Args:
        named: from `find_model`.
        settings: [model] keys of a profile, for settings that a file lacks (see `infer_minimind`);
            not used for a run or a folder, which contain them.
        best: use the best checkpoint of a run.

    Raises:
        DpoError: the weights are missing, damaged or of an unknown format.
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
        raise DpoError(
            f"{named.title}: only a run has a best checkpoint", "Name a run, or leave out best."
        )
    model_weights = load_model_weights(named.path, {} if named.path.is_dir() else settings)
    dtype = model_weights.dtype_name
    return OpenedModel(
        named.title, model_weights, export_dtype=dtype if dtype in DTYPES else "float32"
    )


def open_reference(profile: Profile, runs_root: Path, run: RunDirectory | None) -> OpenedModel:
    """Load the reference of a profile.

    Args:
        profile: names the reference, or the starting weights, which are the default.
        runs_root: directory of runs, for `run:NAME`.
        run: run of the profile, if any; it keeps a copy of the weights that `run:NAME` names.

    Raises:
        DpoError: the weights are missing or damaged, or contradict the profile.
    """
    which = profile.model.reference_key
    source = resolve_weights(profile, which)
    title = source if source.startswith(RUN_PREFIX) else show_model(Path(source))
    keep_in = run.path if run else None
    return OpenedModel(title, read_model_weights(profile, which, runs_root, keep_in))
