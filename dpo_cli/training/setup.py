"""Trainer of a run, made from its inputs: settings of torch, models, optimizer, saved state."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from dpo_cli.compute.device import make_deterministic
from dpo_cli.compute.loss_scale import make_scaler
from dpo_cli.compute.threads import set_threads
from dpo_cli.data.chat import ChatTokenizer
from dpo_cli.distributed.process_group import ProcessGroup
from dpo_cli.errors import DpoError
from dpo_cli.models.adapted import build_adapted
from dpo_cli.models.frozen import Frozen
from dpo_cli.models.loading import ModelWeights
from dpo_cli.models.options import (
    checkpoint_activations,
    compile_blocks,
    decoder_blocks,
    use_experts_for,
)
from dpo_cli.models.quantized import set_compute_dtype
from dpo_cli.models.scoring import ResponseScorer
from dpo_cli.models.split_weights import split_weights
from dpo_cli.models.support import scorer_for, scorer_like
from dpo_cli.profile.schema import Profile
from dpo_cli.run.checkpoints import Checkpoint
from dpo_cli.run.events import Alert
from dpo_cli.run.plan import Plan
from dpo_cli.training.best import BestSoFar
from dpo_cli.training.checkpointing import load_best, load_weights, restore_state
from dpo_cli.training.inputs import RunInputs
from dpo_cli.training.optimizer import make_optimizer
from dpo_cli.training.reference import open_references
from dpo_cli.training.samples import Sampler
from dpo_cli.training.trainer import Trainer, TrainerHooks


def configure_torch(profile: Profile, rank: int = 0, saved_plan: Plan | None = None) -> None:
    """Seed torch and set the process-wide options of a profile, before anything is computed.

    Args:
        profile: the profile.
        rank: rank of this process.
        saved_plan: plan of a resumed or evaluated run, whose number of threads is kept.
    """
    saved = saved_plan.environment.get("threads", "") if saved_plan else ""
    set_threads(profile.train.threads, int(saved) if saved.isdecimal() else None)
    # Each rank has random numbers of its own, or all would drop out the same units.
    torch.manual_seed(profile.train.seed + rank)
    if profile.data.num_workers:
        # The tokenizer's thread pool reads the variable at its first use.
        os.environ["RAYON_NUM_THREADS"] = str(profile.data.num_workers)
    if profile.train.deterministic:
        make_deterministic()


def make_scorer(
    inputs: RunInputs, weights: ModelWeights, *, is_trained: bool = False
) -> ResponseScorer:
    """Build the model of these weights on the run's device, wrapped in its response scorer.

    Policy, reference and evaluated models get their dtype, `model.weights_dtype`, here.

    Args:
        inputs: inputs of the run.
        weights: of the model.
        is_trained: keep what weights in bfloat16 cannot hold, to train it.
    """
    scorer = _make_scorer(inputs, weights)
    if inputs.profile.model.weights_dtype == "bfloat16":
        split_weights(scorer.model, keeps_rests=is_trained)
    return scorer.to(inputs.device.torch_device)


@dataclass
class ScorerFactory:
    """Builds the scorers of a run, which are sharded if the group shards models.

    Attributes:
        inputs: inputs of the run.
        group: the ranks that train together; all of them build the same scorers, in one order.
    """

    inputs: RunInputs
    group: ProcessGroup
    _built: int = 0

    def make(self, weights: ModelWeights, *, is_trained: bool = False) -> ResponseScorer:
        """Build a scorer; with shards, the values are those of the main rank. Collective.

        Only the main rank has the whole model, in main memory and only here. It tries out whether
        the model computes packed rows, which needs the values.
        """
        inputs, group = self.inputs, self.group
        if not group.is_sharded:
            return make_scorer(inputs, weights, is_trained=is_trained)
        self._built += 1
        stage = f"scorer-{self._built}"
        if group.is_main:
            scorer = _make_scorer(inputs, weights)
            whole = {name: each.detach() for name, each in scorer.named_parameters()}
            found = scorer.model.config._attn_implementation, scorer.fallback_reason
            group.broadcast_from_main(stage, lambda: found)
        else:
            found = group.broadcast_from_main(stage, lambda: None)
            scorer, whole = _make_scorer(inputs, weights.without_values(), found), {}
            for parameter in scorer.parameters():
                # Allocated and never written, so that the system provides no memory for it.
                parameter.data = torch.empty(parameter.shape, dtype=parameter.dtype)
        group.shard(scorer, decoder_blocks(scorer.model), scorer.next_logits.__name__, whole)
        return scorer

    def make_reference(self, policy: ResponseScorer) -> Frozen:
        """Return the reference; see `frozen_reference`. Collective with shards."""
        if not self.group.is_sharded:
            return frozen_reference(self.inputs, policy)
        return Frozen(self.make(self.inputs.reference_weights))


def _make_scorer(
    inputs: RunInputs, weights: ModelWeights, found: tuple[str, str | None] | None = None
) -> ResponseScorer:
    """Build a scorer on the CPU.

    Args:
        inputs: inputs of the run.
        weights: weights of the model.
        found: see `scorer_like`; None to try out how the model is scored.
    """
    profile, architecture = inputs.profile, weights.architecture
    model = build_adapted(weights, dropout=profile.model.dropout)
    set_compute_dtype(model, inputs.device.dtype)
    if architecture.use_moe:
        use_experts_for(
            model,
            float32=inputs.device.dtype == torch.float32,
            is_on_cpu=inputs.device.type == "cpu",
        )
    options: dict[str, Any] = {
        "aux_loss_kind": architecture.aux_loss_kind if architecture.use_moe else None,
        "aux_loss_tokens": profile.train.aux_loss_tokens,
        # The reference computes them too, although nothing reads them: with other operations its
        # log-probs would have other bits than the policy's at step 0.
        "computes_sum_sq_probs": profile.dpo.use_weighting,
    }
    if found is not None:
        scorer = scorer_like(model, *found, **options)
    else:
        scorer = scorer_for(
            model, inputs.longest_sequence, is_known=architecture.supports_packing, **options
        )
    if profile.train.compile:
        compile_blocks(model)
    if profile.train.activation_checkpointing:
        checkpoint_activations(model)
    return scorer


def frozen_reference(inputs: RunInputs, policy: ResponseScorer | None = None) -> Frozen:
    """Return the reference on the run's device: the policy without its adapter, or a model.

    Args:
        inputs: inputs of the run.
        policy: policy of the run, if there is one; it is used if it can compute its own start.
    """
    at_start = inputs.trainable.at_start
    if policy is not None and at_start is not None and inputs.policy_is_reference:
        return Frozen(policy, partial(at_start, policy.model))
    return Frozen(make_scorer(inputs, inputs.reference_weights).requires_grad_(False))


def fallback_alert(scorer: ResponseScorer) -> Alert | None:
    """Return the alert about a model that cannot compute packed rows; None if it can."""
    if scorer.fallback_reason is None:
        return None
    return Alert(
        code="not-packed",
        message=f"{type(scorer.model).__name__} is computed sequence by sequence, with padding and"
        f" each prompt twice: {scorer.fallback_reason}",
        remedy="No action is needed: the results are exact, and training takes longer.",
    )


def build_trainer(
    inputs: RunInputs,
    checkpoint: Checkpoint | None,
    directory: Path,
    hooks: TrainerHooks,
    save: Callable[[Trainer], None],
    group: ProcessGroup,
) -> Trainer:
    """Build policy, reference and optimizer, and restore the state of a checkpoint.

    Args:
        inputs: inputs of the run.
        checkpoint: state to restore; None to begin with the starting weights.
        directory: directory of the run, in which the reference's log-probs are kept.
        hooks, save, group: see `Trainer`.

    Raises:
        DpoError: the checkpoint is damaged, or not of this model.
    """
    trainable = inputs.trainable
    weights = trainable.start
    # Only the main rank can read checkpoints; `restore_state` sends the weights to the others.
    if checkpoint is not None and group.is_main:
        weights = trainable.at(load_weights(checkpoint.path))
    factory = ScorerFactory(inputs, group)
    policy = factory.make(weights, is_trained=True)
    load_reference = partial(factory.make_reference, policy)
    references = open_references(inputs, load_reference, directory)
    optimizer = make_optimizer(
        trainable.optimized(policy.model).values(), inputs.profile.train, policy.model
    )
    scaler = make_scaler(inputs.device.torch_device, inputs.device.dtype)
    if group.is_sharded and scaler.is_enabled():
        raise DpoError(
            f'launch.strategy = "shard" does not work in float16, which {inputs.device.name} needs',
            'Set train.dtype = "float32".',
        )
    trainer = Trainer(inputs, policy, *references, optimizer, scaler, hooks, save, group)
    if inputs.profile.eval.num_samples and inputs.held_out:
        tokenizer = ChatTokenizer(inputs.tokenizer)
        trainer.sampler = Sampler(inputs, tokenizer, load_reference, group)
    if checkpoint is not None:
        trainer.optimizer_step = restore_state(
            checkpoint.path,
            trainable=trainable,
            model=policy.model,
            optimizer=optimizer,
            scaler=scaler,
            group=group,
        )
        best = group.broadcast_from_main("best", lambda: load_best(checkpoint.path).to_dict())
        trainer.best = BestSoFar.from_dict(best)
        checkpoint.require_unchanged()
    return trainer
