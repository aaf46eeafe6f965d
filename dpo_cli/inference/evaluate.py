"""Any weights on any preference pairs, exactly as a run's own evaluations do it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from dpo_cli.compute.device import Device, configure_device, resolve
from dpo_cli.data.chat import ChatTokenizer
from dpo_cli.distributed.process_group import SINGLE_PROCESS
from dpo_cli.inference.open_model import OpenedModel, open_model, open_reference
from dpo_cli.models.loading import ModelWeights
from dpo_cli.models.minimind import NOT_IN_WEIGHTS
from dpo_cli.profile.inputs import resolve_tokenizer
from dpo_cli.profile.resolved import to_tables
from dpo_cli.profile.schema import Profile
from dpo_cli.run.eval_config import EvalConfig, split_of
from dpo_cli.run.events import EVALUATION
from dpo_cli.run.plan import Plan
from dpo_cli.training.evaluation import score_held_out, summarize_groups
from dpo_cli.training.inputs import RunInputs, assemble_inputs
from dpo_cli.training.reference import CachedReference, NoReference, Reference, open_references
from dpo_cli.training.resume_checks import require_same_inputs
from dpo_cli.training.setup import configure_torch, make_scorer
from dpo_cli.training.sources import (
    OnProgress,
    require_same_vocabulary,
    training_pairs,
    usable_rows,
)

Figures = Mapping[str, float]

_OWN_FIGURES = ("pairs", "logps/", "token_logps/", "entropy")
"""Beginnings of the names of figures that mean something without a reference."""


@dataclass(frozen=True)
class EvaluatedModel:
    """What one model came to.

    Attributes:
        title: what to call it.
        optimizer_step: after which it was saved; None of what is no run's.
        groups: `dpo_cli.objective.held_out.summarize` by group of pairs, as events have it.
    """

    title: str
    optimizer_step: int | None
    groups: Mapping[str, Figures]


@dataclass(frozen=True)
class Evaluation:
    """What some models came to by one eval_config.

    Attributes:
        models: each of them.
        reference: what they were compared with; None if nothing.
        device, dtype: where, and in which precision.
        vocab_size: tokens that they know.
        skipped_rows: rows of the file that are no pairs.
        trained_on: the titles of runs that were trained on the file that the pairs are from, and
            did not hold these out of it.
    """

    eval_config: EvalConfig
    models: Sequence[EvaluatedModel]
    reference: str | None
    device: str
    dtype: str
    vocab_size: int
    skipped_rows: int
    trained_on: Sequence[str]


def stated_by(eval_config: EvalConfig) -> dict[str, Any]:
    """What its profile says of weights that these cannot tell themselves; for `open_model`."""
    return eval_config.profile.model.model_dump(include=set(NOT_IN_WEIGHTS))


def evaluate_models(
    eval_config: EvalConfig, models: Sequence[OpenedModel], on_progress: OnProgress
) -> Evaluation:
    """Score a eval_config's pairs with some models, on its profile's device and in its precision.

    Args:
        eval_config: from `find_eval_config`.
        models: of one vocabulary.
        on_progress: hears how far it is.

    Raises:
        DpoError: an input is gone, damaged, not what the run began with, or does not fit the
            others; or the device is not here.
    """
    profile, owner = eval_config.profile, eval_config.owner
    saved_plan = owner.read_plan() if owner is not None else None
    configure_torch(profile)
    device = resolve(profile.train.device, profile.train.dtype)
    matmul = saved_plan.environment.get("float32_matmul") if saved_plan else None
    configure_device(device, matmul, tf32=profile.train.tf32)
    reference = _open_reference(eval_config)
    checkpoints = [model.model_weights for model in models]
    frozen = reference.model_weights if reference else checkpoints[0]
    inputs = _prepare(profile, device, checkpoints, frozen, on_progress)
    if saved_plan is not None:
        _refuse_other_inputs(eval_config, saved_plan.fingerprints, inputs)
    evaluated_models = []
    with _reference_of(eval_config, inputs) as scores:
        for model in models:
            table = _score(inputs, model.model_weights, scores, on_progress)
            figures = _figures(table, inputs, has_reference=eval_config.has_reference)
            evaluated_models.append(EvaluatedModel(model.title, model.optimizer_step, figures))
    return Evaluation(
        eval_config=eval_config,
        models=evaluated_models,
        reference=reference.title if reference else None,
        device=str(device.torch_device),
        dtype=device.dtype_name,
        vocab_size=models[0].model_weights.architecture.vocab_size,
        skipped_rows=len(inputs.skipped_rows),
        trained_on=[
            model.title
            for model in models
            if model.plan is not None and _was_trained_on(model.plan, eval_config, inputs)
        ],
    )


def _open_reference(eval_config: EvalConfig) -> OpenedModel | None:
    if not eval_config.has_reference:
        return None
    if eval_config.reference is not None:
        return open_model(eval_config.reference, stated_by(eval_config))
    return open_reference(eval_config.profile, eval_config.runs_root, eval_config.owner)


def _prepare(
    profile: Profile,
    device: Device,
    models: Sequence[ModelWeights],
    reference: ModelWeights,
    on_progress: OnProgress,
) -> RunInputs:
    """The pairs as a run has its held-out ones, in the same rows; of a run's plan no more is used.

    Where all of a file is judged by, it stands in for the pairs that a run would train on.
    """
    tokenizer = ChatTokenizer(resolve_tokenizer(profile))
    for model in models:
        require_same_vocabulary(tokenizer, model, reference)
    rows = usable_rows(profile, training_pairs(profile), tokenizer, on_progress, SINGLE_PROCESS)
    held_out = None if profile.eval.path is None else rows
    return assemble_inputs(profile, device, tokenizer, models[0], reference, rows, held_out)


def _refuse_other_inputs(
    eval_config: EvalConfig, saved_plan: Mapping[str, str], inputs: RunInputs
) -> None:
    """A run's own held-out pairs, its tokenizer and its reference are what they were."""
    names = {"tokenizer"}
    if eval_config.is_own:
        names.add("data" if eval_config.profile.eval.path is None else "held_out")
    if eval_config.has_reference and eval_config.reference is None:
        names.add("reference")
    now = {name: inputs.fingerprints[name] for name in names}
    require_same_inputs(saved_plan, now)


def _was_trained_on(plan: Plan, eval_config: EvalConfig, inputs: RunInputs) -> bool:
    """Whether the run of a plan has learned from pairs that it is judged by."""
    if plan.fingerprints["data"] != inputs.fingerprints["data"]:
        return False
    is_split = eval_config.is_own and eval_config.profile.eval.path is None
    return not (is_split and split_of(plan.settings) == split_of(to_tables(eval_config.profile)))


@contextmanager
def _reference_of(eval_config: EvalConfig, inputs: RunInputs) -> Iterator[Reference]:
    """The reference's log-probs of the held-out pairs, from the cache or for it.

    What lies beside a run is the run's; nothing is written there.
    """
    if not eval_config.has_reference:
        yield NoReference()
        return
    with tempfile.TemporaryDirectory() as nowhere:
        reference = open_references(
            inputs, lambda: make_scorer(inputs, inputs.reference_weights), Path(nowhere)
        )[1]
        yield reference
        if isinstance(reference, CachedReference):
            reference.save()


def _score(
    inputs: RunInputs, model: ModelWeights, reference: Reference, on_progress: OnProgress
) -> Tensor:
    """(K, F), see `dpo_cli.training.evaluation.score_held_out`."""
    pairs = inputs.held_out
    return score_held_out(
        make_scorer(inputs, model),
        reference,
        inputs.batches.held_out_batches,
        partial(inputs.batches.make_batch, pairs),
        dpo=inputs.profile.dpo,
        device=inputs.device,
        on_progress=lambda done: on_progress(EVALUATION, done, len(pairs), "pairs"),
    )


def _figures(table: Tensor, inputs: RunInputs, *, has_reference: bool) -> Mapping[str, Figures]:
    groups = summarize_groups(table, inputs.held_out_groups)
    if has_reference or not inputs.profile.dpo.needs_reference:
        return groups
    return {
        name: {key: value for key, value in figures.items() if key.startswith(_OWN_FIGURES)}
        for name, figures in groups.items()
    }
