"""The held-out pairs of a run, scored by any weights exactly as the run's own evaluations do it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from dpo_cli.errors import DpoError
from dpo_cli.models.convert import StateDict
from dpo_cli.objective.held_out import summarize
from dpo_cli.profile.load import load_profile
from dpo_cli.run.events import EVALUATION, Evaluated, history
from dpo_cli.run.store import RunDirectory
from dpo_cli.training import evaluation
from dpo_cli.training.building import configure_torch, make_scorer
from dpo_cli.training.device import resolve, tune
from dpo_cli.training.inputs import OnProgress
from dpo_cli.training.plan import prepare
from dpo_cli.training.promises import refuse_other_inputs
from dpo_cli.training.reference import open_references


def evaluation_seconds(run: RunDirectory) -> float | None:
    """How long the newest evaluation of a run took; None if it made none."""
    evaluations = [event for event in history(run.events_path) if isinstance(event, Evaluated)]
    return evaluations[-1].seconds if evaluations else None


def score_held_out(
    run: RunDirectory,
    settings: Sequence[str],
    weights: Sequence[StateDict],
    on_progress: OnProgress,
) -> list[dict[str, float]]:
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
    profile, promised = load_profile(run.profile_path, settings).profile, run.read_plan()
    if promised is None:
        raise DpoError(f"{run.name} has no plan")
    configure_torch(profile)
    compute = resolve(profile.train.device, profile.train.dtype)
    tune(compute, promised["environment"].get("float32_matmul"), tf32=profile.train.tf32)
    prepared = prepare(profile, compute, run, on_progress)
    refuse_other_inputs(promised, prepared.plan())
    reference = open_references(
        prepared, lambda: make_scorer(prepared, prepared.reference), run.path
    )[1]
    rows, pairs = prepared.held_out_rows, prepared.held_out

    def score(state: StateDict) -> dict[str, float]:
        table = evaluation.score_held_out(
            make_scorer(prepared, replace(prepared.checkpoint, state=state)),
            reference,
            rows,
            partial(prepared.batch, pairs),
            dpo=profile.dpo,
            compute=compute,
            on_progress=lambda done: on_progress(EVALUATION, done, len(pairs), "pairs"),
        )
        return summarize(table)

    return [score(state) for state in weights]
