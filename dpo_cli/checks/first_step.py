"""Step 0 on real pairs, before any weight has moved: what must hold for training to mean anything.

The loop's own batch, forward, loss and backward run once; no optimizer step is taken here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import torch
from torch import Tensor

from dpo_cli.checks.reporter import Reporter
from dpo_cli.checks.trial_trainer import TrialTrainer, modest_micro_batch
from dpo_cli.models.convert import EMBEDDING, HEAD
from dpo_cli.models.loading import to_disk_names
from dpo_cli.objective.losses import PairScores, loss_at_start
from dpo_cli.training.inputs import RunInputs
from dpo_cli.training.setup import fallback_alert

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 2e-2}
"""How far the first loss may be from the known one, of which it is a share above 1 nat: two
forwards of the same weights."""

_LISTED = 6
_EXPERT = re.compile(r"(.*\.experts\.\d+)\.")
_ROUTER = ".mlp.gate.weight"


def check_layout(reporter: Reporter, trial: TrialTrainer) -> None:
    """Say where a model is computed the slower way."""
    alert = fallback_alert(trial.trainer.policy)
    if alert is not None:
        reporter.warn(alert.code, "model.weights", alert.message, alert.remedy)


def check_first_step(reporter: Reporter, trial: TrialTrainer) -> None:
    """Score one micro-batch by policy and reference, and let the loss flow back."""
    inputs, trainer = trial.inputs, trial.trainer
    policy, indices = trainer.policy, modest_micro_batch(inputs)
    # Dropout would make policy and reference differ; what is asked here is whether nothing else
    # does.
    policy.train(not inputs.profile.model.dropout)
    batch = inputs.batches.make_batch(inputs.pairs, indices)
    pairs, balance = trainer.score(batch, trainer.reference.token_logps(indices, batch))
    _check_start(reporter, inputs, pairs)
    loss = pairs.losses.mean()
    if balance is not None:
        loss = loss + inputs.router_aux_loss_coef * balance
    trainer.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
    trainer.scaler.unscale_(trainer.optimizer)
    gradients = {
        name: torch.zeros_like(weight) if weight.grad is None else weight.grad
        for name, weight in policy.model.named_parameters()
    }
    on_disk = to_disk_names(policy.model, gradients)
    _check_gradients(reporter, inputs, inputs.weights.architecture.to_native_names(on_disk))
    trainer.scaler.update()
    trainer.optimizer.zero_grad(set_to_none=True)


def _check_start(reporter: Reporter, inputs: RunInputs, pairs: PairScores) -> None:
    """The first loss: exactly what the policy has as its own reference, ln 2 with DPO."""
    loss = pairs.losses.mean().item()
    beta, start = inputs.profile.dpo.beta, loss_at_start(inputs.profile.dpo)
    rewards = torch.cat([pairs.rewards_chosen, pairs.rewards_rejected])
    difference = rewards.abs().max().item() / beta
    where = f"{len(pairs.losses)} pairs, {inputs.device.torch_device} {inputs.device.dtype_name}"
    unit = "nats a token" if inputs.profile.dpo.reduction == "mean" else "nats a response"
    apart = "policy and reference agree exactly"
    if difference:
        apart = f"policy and reference are at most {difference:.2g} {unit} apart"
    if not math.isfinite(loss):
        reporter.error(
            "first-loss",
            where,
            f"the loss is {loss} before any weight has moved",
            "compute in another train.dtype, or look at these weights: are they sound?",
        )
    elif not inputs.profile.dpo.needs_reference:
        reporter.ok("first-loss", where, f"the loss is {loss:.4f}; it needs no reference")
    elif start is None:
        reporter.ok("first-loss", where, f"the loss is {loss:.4f}; {apart}")
    elif inputs.reference_weights is not inputs.weights:
        reporter.ok(
            "first-loss",
            where,
            f"the loss is {loss:.4f}: not {_known(start)}, since model.reference is not the"
            f" checkpoint; {apart}",
        )
    elif abs(loss - start) > TOLERANCE[inputs.device.dtype] * max(1, abs(start)):
        reporter.error(
            "first-loss",
            where,
            f"the loss is {loss:.4f}, and must be {_known(start)}; {apart}",
            "policy and reference have the same weights and compute something else: try"
            ' train.dtype = "float32", and report it',
        )
    else:
        name = " = ln 2" if _is_ln_2(start) else ""
        reporter.ok("first-loss", where, f"the loss is {loss:.4f}{name}, as it must; {apart}")


def _is_ln_2(loss: float) -> bool:
    return math.isclose(loss, math.log(2))


def _known(start: float) -> str:
    return f"ln 2 = {start:.4f}" if _is_ln_2(start) else f"{start:.4f}"


def _check_gradients(
    reporter: Reporter, inputs: RunInputs, gradients: Mapping[str, Tensor]
) -> None:
    """Every weight that can learn from these pairs is told how."""
    architecture = inputs.weights.architecture
    tied = gradients.get(EMBEDDING)
    own = {name: its for name, its in gradients.items() if name != HEAD or its is not tied}
    norm = math.sqrt(sum(gradient.double().square().sum().item() for gradient in own.values()))
    # Under float16 the scaler skips steps whose scaled gradients overflow; that is its work.
    if not math.isfinite(norm) and inputs.device.dtype != torch.float16:
        remedy = "compute in another train.dtype, or look at these weights: are they sound?"
        reporter.error("gradient-overflow", "", f"the gradient's norm is {norm}", remedy)
        return
    still = {name for name, gradient in own.items() if not gradient.any()}
    experts = {name: match[1] for name in own if (match := _EXPERT.match(name))}
    idle = set(experts.values()) - {experts[name] for name in experts if name not in still}
    missing = [name for name in own if name in still and experts.get(name) not in idle]
    # Of a constant the gradient is nothing but rounding.
    if routers_rest := architecture.has_constant_expert_weights and not inputs.router_aux_loss_coef:
        missing = [name for name in missing if not name.endswith(_ROUTER)]
    message = f"a gradient in {len(own) - len(still)} of {len(own)} tensors, norm {norm:.3g}"
    if idle:
        number = len(set(experts.values()))
        message += f"; {len(idle)} of {number} experts had no part in these pairs"
    if missing:
        listed = ", ".join(missing[:_LISTED]) + (", ..." if len(missing) > _LISTED else "")
        reporter.error(
            "gradient-missing",
            "",
            f"{message}; none in {listed}",
            "these weights cannot learn: was the checkpoint saved whole?",
        )
    elif routers_rest:
        reporter.warn(
            "router-still",
            "train.router_aux_loss_coef",
            f"{message}; the routers learn nothing: with one expert a token, its weight scaled to"
            " 1, only the balance loss teaches them",
            f"train.router_aux_loss_coef = {architecture.default_router_aux_loss_coef:g}",
        )
    else:
        reporter.ok("gradients", "", message)
