"""Evaluation of any weights on any preference pairs, as in a run's own evaluations."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from dpo_cli.compute.device import DTYPES, Device, configure_device, resolve
from dpo_cli.data.chat import ChatTokenizer
from dpo_cli.data.groups import ALL, count_known_prompts
from dpo_cli.distributed.process_group import SINGLE_PROCESS
from dpo_cli.errors import DpoError
from dpo_cli.inference.open_model import OpenedModel, open_model, open_reference
from dpo_cli.models.convert import StateDict
from dpo_cli.models.loading import ModelWeights
from dpo_cli.models.minimind import NOT_IN_WEIGHTS
from dpo_cli.models.quantized import require_kernels
from dpo_cli.models.spec import architecture_of
from dpo_cli.paired import ModelScores, PairedComparison, compare
from dpo_cli.profile.inputs import resolve_tokenizer
from dpo_cli.profile.resolved import to_tables
from dpo_cli.profile.schema import Profile
from dpo_cli.run.directory import RunDirectory
from dpo_cli.run.eval_config import EvalConfig, find_eval_config, split_of
from dpo_cli.run.events import ACCURACIES, EVALUATION, Evaluated, history
from dpo_cli.run.models import NamedModel
from dpo_cli.run.plan import Plan
from dpo_cli.training.evaluation import pair_scores, score_held_out, summarize_groups
from dpo_cli.training.inputs import RunInputs, assemble_inputs
from dpo_cli.training.reference import CachedReference, NoReference, Reference, open_references
from dpo_cli.training.resume_checks import require_same_inputs
from dpo_cli.training.setup import configure_torch, frozen_reference, make_scorer
from dpo_cli.training.sources import (
    OnProgress,
    require_same_vocabulary,
    training_pairs,
    usable_rows,
)

Metrics = Mapping[str, float]

_WITHOUT_REFERENCE = ("pairs", "logps/", "token_logps/", "entropy")
"""Prefixes of the metrics that need no reference."""


@dataclass(frozen=True)
class EvaluatedModel:
    """Metrics of one model.

    Attributes:
        title: name on the screen.
        optimizer_step: step of the checkpoint; None if the model is not a run's.
        groups: metrics by group of pairs, see `dpo_cli.objective.held_out.summarize`.
    """

    title: str
    optimizer_step: int | None
    groups: Mapping[str, Metrics]


@dataclass(frozen=True)
class Comparison:
    """The last of several models compared with another one, on the same pairs.

    Attributes:
        model, other: indices into `Evaluation.models`.
        result: differences are those of `model` minus `other`.
    """

    model: int
    other: int
    result: PairedComparison


@dataclass(frozen=True)
class Evaluation:
    """Metrics of several models on the same pairs.

    Attributes:
        eval_config: pairs and settings.
        models: metrics of each model.
        reference: title of the reference; None without one.
        device, dtype: device and dtype of the computation.
        vocab_size: vocabulary size of the models.
        skipped_rows: number of skipped rows of the file.
        trained_on: titles of the runs that have trained on these pairs.
        truncated: number of pairs that lose text at `data.max_seq_len`.
        known_prompts: number of pairs whose prompt is also that of a pair to train on; None if the
            pairs are not those that a profile holds out, or the others are unknown.
        comparisons: the last model with each of the others.
    """

    eval_config: EvalConfig
    models: Sequence[EvaluatedModel]
    reference: str | None
    device: str
    dtype: str
    vocab_size: int
    skipped_rows: int
    trained_on: Sequence[str]
    truncated: int = 0
    known_prompts: int | None = None
    comparisons: Sequence[Comparison] = ()


def model_settings(eval_config: EvalConfig) -> dict[str, Any]:
    """Return the [model] keys that a weights file does not contain, for `open_model`."""
    return eval_config.profile.model.model_dump(include=set(NOT_IN_WEIGHTS))


def evaluate_models(
    eval_config: EvalConfig, models: Sequence[OpenedModel], on_progress: OnProgress
) -> Evaluation:
    """Evaluate models on the pairs, the device and the dtype of an evaluation's profile.

    Args:
        eval_config: from `find_eval_config`.
        models: models with one vocabulary.
        on_progress: called with phase, done, total and unit.

    Raises:
        DpoError: an input is missing, damaged or has changed since the run began, or inputs do not
            fit each other; or the device does not exist.
    """
    profile, owner = eval_config.profile, eval_config.owner
    saved_plan = owner.read_plan() if owner is not None else None
    configure_torch(profile, saved_plan=saved_plan)
    device = resolve(profile.train.device, profile.compute_dtype)
    # The run's own matmul kernel, so that its metrics are reproduced bit for bit.
    matmul = saved_plan.environment.get("float32_matmul") if saved_plan else None
    configure_device(device, matmul, tf32=profile.train.tf32)
    reference = _open_reference(eval_config)
    weights = [model.model_weights for model in models]
    reference_weights = reference.model_weights if reference else weights[0]
    for each in (*weights, reference_weights):
        if each.quantization is not None:
            require_kernels(each.quantization, device.torch_device)
    whole_prompts = saved_plan is None or saved_plan.pairs.whole_prompts
    inputs = _prepare(profile, device, weights, reference_weights, on_progress, whole_prompts)
    if saved_plan is not None:
        _require_same_inputs(eval_config, saved_plan.fingerprints, inputs)
    evaluated, scores = [], []
    with _reference_of(eval_config, inputs) as reference_logps:
        for model in models:
            table = _score(inputs, model.model_weights, reference_logps, on_progress)
            groups = _summarize(table, inputs, has_reference=eval_config.has_reference)
            evaluated.append(EvaluatedModel(model.title, model.optimizer_step, groups))
            scores.append(_pair_scores(table, inputs, groups[ALL]))
    return Evaluation(
        eval_config=eval_config,
        models=evaluated,
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
        truncated=int(inputs.held_out.shortened.sum()),
        known_prompts=_known_prompts(eval_config, saved_plan, inputs),
        comparisons=[
            Comparison(len(scores) - 1, index, compare(scores[-1], other, ACCURACIES))
            for index, other in enumerate(scores[:-1])
        ],
    )


def evaluation_seconds(run: RunDirectory) -> float | None:
    """Return the seconds of the slowest evaluation of a run; None if there was none.

    The slowest, because the first one may have read all its log-probs from the cache.
    """
    evaluations = [event for event in history(run.events_path) if isinstance(event, Evaluated)]
    return max((event.seconds for event in evaluations), default=None)


def evaluate_held_out(
    run: RunDirectory,
    overrides: Sequence[str],
    weights: Sequence[StateDict],
    on_progress: OnProgress,
) -> Evaluation:
    """Evaluate weights on a run's held-out pairs, on the run's device and in its dtype.

    Args:
        run: run with held-out pairs.
        overrides: `KEY=VALUE` for keys of its profile, for example a new path of the data.
        weights: one or more state dicts in the Hugging Face layout, of any float dtype.
        on_progress: called with phase, done, total and unit.

    Returns:
        One model per state dict. The metrics are bit for bit those of the run's own evaluation.

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
    return evaluate_models(eval_config, models, on_progress)


def _open_reference(eval_config: EvalConfig) -> OpenedModel | None:
    if not eval_config.has_reference:
        return None
    if eval_config.reference is not None:
        return open_model(eval_config.reference, model_settings(eval_config))
    return open_reference(eval_config.profile, eval_config.runs_root, eval_config.owner)


def _prepare(
    profile: Profile,
    device: Device,
    models: Sequence[ModelWeights],
    reference: ModelWeights,
    on_progress: OnProgress,
    whole_prompts: bool,
) -> RunInputs:
    """Build inputs whose held-out pairs are the pairs to evaluate.

    If all pairs of a file are evaluated, they also take the place of the training pairs, which are
    required but not used.
    """
    tokenizer = ChatTokenizer(resolve_tokenizer(profile))
    for model in models:
        require_same_vocabulary(tokenizer, model, reference)
    rows = usable_rows(profile, training_pairs(profile), tokenizer, on_progress, SINGLE_PROCESS)
    held_out = None if profile.eval.path is None else rows
    return assemble_inputs(
        profile,
        device,
        tokenizer,
        models[0],
        reference,
        rows,
        held_out,
        whole_prompts=whole_prompts,
    )


def _known_prompts(
    eval_config: EvalConfig, saved_plan: Plan | None, inputs: RunInputs
) -> int | None:
    if not eval_config.is_own:
        return None
    if saved_plan is not None and saved_plan.pairs.held_out_known is not None:
        return saved_plan.pairs.held_out_known
    # Pairs of `eval.path` are all that was read: those to train on are unknown.
    if eval_config.profile.eval.path is not None:
        return None
    return count_known_prompts(inputs.held_out, inputs.pairs)


def _require_same_inputs(
    eval_config: EvalConfig, saved_plan: Mapping[str, str], inputs: RunInputs
) -> None:
    """Require that the inputs of the owner's run have not changed."""
    names = {"tokenizer"}
    if eval_config.is_own:
        names.add("data" if eval_config.profile.eval.path is None else "held_out")
    if eval_config.has_reference and eval_config.reference is None:
        names.add("reference")
    now = {name: inputs.fingerprints[name] for name in names}
    require_same_inputs(saved_plan, now)


def _was_trained_on(plan: Plan, eval_config: EvalConfig, inputs: RunInputs) -> bool:
    """Return True if the run of a plan has trained on the pairs of the evaluation."""
    if plan.fingerprints["data"] != inputs.fingerprints["data"]:
        return False
    is_split = eval_config.is_own and eval_config.profile.eval.path is None
    is_same = split_of(plan.settings) == split_of(to_tables(eval_config.profile))
    if plan.pairs.whole_prompts != inputs.whole_prompts:
        # Both rules give the same split if they separate no pairs of a prompt.
        is_same &= plan.pairs.held_out_known == 0
    return not (is_split and is_same)


@contextmanager
def _reference_of(eval_config: EvalConfig, inputs: RunInputs) -> Iterator[Reference]:
    """Open the reference's log-probs of the held-out pairs, and add them to the cache at the end.

    Only the shared cache is used: nothing is written to the run's directory.
    """
    if not eval_config.has_reference:
        yield NoReference()
        return
    with tempfile.TemporaryDirectory() as empty:
        reference = open_references(inputs, lambda: frozen_reference(inputs), Path(empty))[1]
        yield reference
        if isinstance(reference, CachedReference):
            reference.save()


def _score(
    inputs: RunInputs, model: ModelWeights, reference: Reference, on_progress: OnProgress
) -> Tensor:
    """Score all pairs, (K, F), see `dpo_cli.training.evaluation.score_held_out`."""
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


def _summarize(table: Tensor, inputs: RunInputs, *, has_reference: bool) -> Mapping[str, Metrics]:
    groups = summarize_groups(table, inputs.held_out_groups, inputs.held_out_prompts)
    if has_reference or not inputs.profile.dpo.needs_reference:
        return groups
    return {
        name: {key: value for key, value in metrics.items() if key.startswith(_WITHOUT_REFERENCE)}
        for name, metrics in groups.items()
    }


def _pair_scores(table: Tensor, inputs: RunInputs, summary: Metrics) -> ModelScores:
    """Return the metrics of each pair that the summary of all pairs has, too."""
    scores = pair_scores(table, inputs.held_out_prompts)
    kept = {name: values for name, values in scores.metrics.items() if name in summary}
    return ModelScores(kept, scores.prompts)
