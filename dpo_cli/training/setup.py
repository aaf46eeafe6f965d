"""From the inputs of a run to what trains: settings of torch, and models."""

from __future__ import annotations

import os
from typing import Any

import torch

from dpo_cli.compute.device import make_deterministic
from dpo_cli.models.loading import (
    ModelWeights,
    build_model,
    checkpoint_activations,
    compile_blocks,
    use_experts_for,
)
from dpo_cli.models.scoring import ResponseScorer
from dpo_cli.models.support import scorer_for
from dpo_cli.profile.schema import Profile
from dpo_cli.run.events import Alert
from dpo_cli.training.inputs import RunInputs


def configure_torch(profile: Profile, rank: int = 0) -> None:
    """Process-wide settings, before anything is computed. Each rank draws for itself."""
    torch.manual_seed(profile.train.seed + rank)
    if profile.data.num_workers:
        # The tokenizer's thread pool reads it when it is first used.
        os.environ["RAYON_NUM_THREADS"] = str(profile.data.num_workers)
    if profile.train.deterministic:
        make_deterministic()


def make_scorer(inputs: RunInputs, model_weights: ModelWeights) -> ResponseScorer:
    """The model of a checkpoint on the run's device, as the module that scores responses."""
    profile, architecture = inputs.profile, model_weights.architecture
    model = build_model(architecture, model_weights.state, dropout=profile.model.dropout)
    if architecture.use_moe:
        use_experts_for(model, float32=inputs.device.dtype == torch.float32)
    options: dict[str, Any] = {
        "aux_loss_kind": architecture.aux_loss_kind if architecture.use_moe else None,
        "aux_loss_tokens": profile.train.aux_loss_tokens,
        # Of the reference too, though nobody reads it: for the same bits as the policy's.
        "computes_sum_sq_probs": profile.dpo.use_weighting,
    }
    if architecture.supports_packing:
        scorer = ResponseScorer(model, **options)
    else:
        scorer = scorer_for(model, inputs.longest_sequence, **options)
    if profile.train.compile:
        compile_blocks(model)
    if profile.train.activation_checkpointing:
        checkpoint_activations(model)
    return scorer.to(inputs.device.torch_device)


def fallback_alert(scorer: ResponseScorer) -> Alert | None:
    """Why a model is computed the slower way, if it is."""
    if scorer.fallback_reason is None:
        return None
    return Alert(
        code="not-packed",
        message=f"{type(scorer.model).__name__} is computed sequence by sequence, with padding and"
        f" each prompt twice: {scorer.fallback_reason}",
        remedy="nothing: the results are exact, and take longer",
    )
