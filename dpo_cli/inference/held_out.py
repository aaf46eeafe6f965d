"""Evaluation of any weights on the held-out pairs of a run."""

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
    """Return the seconds of the slowest evaluation of a run; None if there was none.

    The slowest, because the first one may have read all its log-probs from the cache.
    """
    evaluations = [event for event in history(run.events_path) if isinstance(event, Evaluated)]
    return max((event.seconds for event in evaluations), default=None)


def score_held_out(
    run: RunDirectory,
    overrides: Sequence[str],
    weights: Sequence[StateDict],
    on_progress: OnProgress,
) -> list[Mapping[str, float]]:
    """Evaluate weights on a run's held-out pairs, on the run's device and in its dtype.

    Args:
        run: run with held-out pairs.
        overrides: `KEY=VALUE` for keys of its profile, for example a new path of the data.
        weights: one or more state dicts in the Hugging Face layout, of any float dtype.
        on_progress: called with phase, done, total and unit.

    Returns:
        Metrics of each state dict, see `dpo_cli.objective.held_out.summarize`. They are bit for bit
        those of the run's own evaluation.

    Raises:
        DpoError: an input is missing or has changed, or the run's device does not exist.
    """
    plan = run.read_plan()
    eval_config = find_eval_config(
        [NamedModel(run.path, run)], runs_root=run.path.parent, settings=overrides
    )
    if plan is None or eval_config is None:
        raise DpoError(f"{run.name} has no held-out pairs")
    architecture = architecture_of(plan.model.shape)
    models = [
        OpenedModel(run.name, ModelWeights(architecture, state, DTYPES["float32"], fingerprint=""))
        for state in weights
    ]
    evaluation = evaluate_models(eval_config, models, on_progress)
    return [model.groups[ALL] for model in evaluation.models]
