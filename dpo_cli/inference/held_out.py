"""The held-out pairs of a run, scored by any weights exactly as the run's own evaluations do it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dpo_cli.compute.device import DTYPES
from dpo_cli.data.groups import ALL
from dpo_cli.errors import DpoError
from dpo_cli.inference.evaluate import evaluate_models
from dpo_cli.inference.open_model import OpenedModel
from dpo_cli.models.convert import StateDict
from dpo_cli.models.loading import ModelWeights
from dpo_cli.models.spec import architecture_of
from dpo_cli.run.directory import RunDirectory
from dpo_cli.run.eval_config import find_eval_config
from dpo_cli.run.events import Evaluated, history
from dpo_cli.run.models import NamedModel
from dpo_cli.training.sources import OnProgress


def evaluation_seconds(run: RunDirectory) -> float | None:
    """How long an evaluation of a run took at most: the first may need nothing but known figures.

    None if it made none.
    """
    evaluations = [event for event in history(run.events_path) if isinstance(event, Evaluated)]
    return max((event.seconds for event in evaluations), default=None)


def score_held_out(
    run: RunDirectory,
    settings: Sequence[str],
    weights: Sequence[StateDict],
    on_progress: OnProgress,
) -> list[Mapping[str, float]]:
    """What a run's evaluation says of weights, on its device and in its precision.

    Args:
        run: has held-out pairs.
        settings: keys of its profile that are others here, such as where the data lies now.
        weights: each in the Hugging Face layout, of any float type.
        on_progress: hears how far it is.

    Returns:
        Of each weights, `dpo_cli.objective.held_out.summarize`: the run's own figures, to the bit.

    Raises:
        DpoError: an input is gone or has changed, or the run's device is not here.
    """
    plan = run.read_plan()
    eval_config = find_eval_config(
        [NamedModel(run.path, run)], runs_root=run.path.parent, settings=settings
    )
    if plan is None or eval_config is None:
        raise DpoError(f"{run.name} has no held-out pairs")
    architecture = architecture_of(plan.model.shape)
    models = [
        OpenedModel(run.name, ModelWeights(architecture, state, DTYPES["float32"], fingerprint=""))
        for state in weights
    ]
    return [
        evaluated_models.groups[ALL]
        for evaluated_models in evaluate_models(eval_config, models, on_progress).models
    ]
