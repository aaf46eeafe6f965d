"""Checks of step 0 on real pairs, before any weight has changed.

They use the training loop's own batch, forward, loss and backward, and take no optimizer step.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping
from statistics import fmean

import torch
from torch import Tensor

from dpo_cli.alerts.start import start_repeats
from dpo_cli.checks.reporter import Reporter
from dpo_cli.checks.trial_trainer import TrialTrainer, small_micro_batch
from dpo_cli.data.chat import ChatTokenizer
from dpo_cli.formatting import format_count, format_percent
from dpo_cli.models.convert import EMBEDDING, HEAD
from dpo_cli.objective.logps import to_float64_device
from dpo_cli.objective.losses import PairScores, loss_at_start
from dpo_cli.repetition import repetition
from dpo_cli.training.inputs import RunInputs
from dpo_cli.training.samples import greedy_answer, prompt_of
from dpo_cli.training.setup import fallback_alert
from dpo_cli.training.sources import OnProgress

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 2e-2}
"""Tolerance of the first loss by dtype: two forwards of the same weights may differ by rounding. It
is absolute up to a loss of 1 nat and relative above."""

_ANSWERS, _ANSWER_SECONDS = 3, 5.0
"""Number of answers of the starting weights, and seconds after which none is begun."""
_NAMED_TENSORS = 6
_EXPERT = re.compile(r"(.*\.experts\.\d+)\.")
_ROUTER = ".mlp.gate.weight"


def check_layout(reporter: Reporter, trial: TrialTrainer) -> None:
    """Warn if the model cannot compute packed rows."""
    alert = fallback_alert(trial.trainer.policy)
    if alert is not None:
        reporter.warn(alert.code, "model.weights", alert.message, alert.remedy)


def check_first_step(reporter: Reporter, trial: TrialTrainer) -> None:
    """Score one micro-batch with policy and reference, and compute the gradients."""
    inputs, trainer = trial.inputs, trial.trainer
    policy, indices = trainer.policy, small_micro_batch(inputs)
    # Without dropout: it would make policy and reference differ, and hide any other difference.
    policy.train(not inputs.profile.has_dropout)
    batch = inputs.batches.make_batch(inputs.pairs, indices)
    pairs, aux_loss = trainer.score(batch, trainer.reference.token_logps(indices, batch))
    _check_loss(reporter, inputs, pairs)
    loss = pairs.losses.mean()
    if aux_loss is not None:
        loss = loss + inputs.router_aux_loss_coef * aux_loss
    trainer.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
    trainer.scaler.unscale_(trainer.optimizer)
    gradients = {
        name: torch.zeros_like(weight) if weight.grad is None else weight.grad
        for name, weight in inputs.trainable.optimized(policy.model).items()
    }
    on_disk = inputs.trainable.to_disk_names(policy.model, gradients)
    _check_gradients(reporter, inputs, inputs.trainable.to_native_names(on_disk))
    trainer.scaler.update()
    trainer.optimizer.zero_grad(set_to_none=True)


def check_start_answers(
    reporter: Reporter, trial: TrialTrainer, tokenizer: ChatTokenizer, on_progress: OnProgress
) -> None:
    """Warn if the answers of the starting weights repeat themselves."""
    inputs, policy = trial.inputs, trial.trainer.policy
    pairs = inputs.held_out or inputs.pairs
    count = min(_ANSWERS, len(pairs))
    answers: list[str] = []
    policy.eval()
    began = time.perf_counter()
    # A large model on a CPU answers once.
    while len(answers) < count and (not answers or time.perf_counter() - began < _ANSWER_SECONDS):
        on_progress("answering prompts", len(answers), count, "answers")
        prompt = prompt_of(pairs[len(answers) * len(pairs) // count])
        answers.append(greedy_answer(inputs, tokenizer, policy, prompt))
    if alert := start_repeats(answers):
        reporter.warn(alert.code, "model.weights", alert.message, alert.remedy)
        return
    share = format_percent(fmean(map(repetition, answers)), 0)
    reporter.ok(
        "start-answers",
        "model.weights",
        f"greedy answers to {format_count(len(answers), 'prompt')} repeat {share} of their text"
        " before training",
    )


def _check_loss(reporter: Reporter, inputs: RunInputs, pairs: PairScores) -> None:
    """Check the first loss: ln 2 for DPO, because the policy equals its reference."""
    loss = pairs.losses.mean().item()
    beta, expected = inputs.profile.dpo.beta, loss_at_start(inputs.profile.dpo)
    rewards = torch.cat([pairs.rewards_chosen, pairs.rewards_rejected])
    difference = rewards.abs().max().item() / beta
    count = format_count(len(pairs.losses), "pair")
    subject = f"{count}, {inputs.device.torch_device} {inputs.device.dtype_name}"
    unit = "nats per token" if inputs.profile.dpo.reduction == "mean" else "nats per response"
    agreement = "policy and reference agree exactly"
    if difference:
        agreement = f"policy and reference differ by at most {difference:.2g} {unit}"
    if not math.isfinite(loss):
        reporter.error(
            "first-loss",
            subject,
            f"the loss is {loss} before any weight has changed",
            "Use another train.dtype, or check these weights.",
        )
    elif not inputs.profile.dpo.needs_reference:
        reporter.ok("first-loss", subject, f"the loss is {loss:.4f}; it needs no reference")
    elif expected is None:
        reporter.ok("first-loss", subject, f"the loss is {loss:.4f}; {agreement}")
    elif inputs.reference_weights is not inputs.weights:
        reporter.ok(
            "first-loss",
            subject,
            f"the loss is {loss:.4f}, not {_loss_text(expected)}, because model.reference is not"
            f" the starting weights; {agreement}",
        )
    elif abs(loss - expected) > TOLERANCE[inputs.device.dtype] * max(1, abs(expected)):
        reporter.error(
            "first-loss",
            subject,
            f"the loss is {loss:.4f}, but must be {_loss_text(expected)}; {agreement}",
            "Policy and reference have the same weights, but compute different values. Try"
            ' train.dtype = "float32", and report this as a bug.',
        )
    else:
        name = " = ln 2" if _is_ln_2(expected) else ""
        reporter.ok(
            "first-loss", subject, f"the loss is {loss:.4f}{name}, as expected; {agreement}"
        )


def _is_ln_2(loss: float) -> bool:
    return math.isclose(loss, math.log(2))


def _loss_text(loss: float) -> str:
    return f"ln 2 = {loss:.4f}" if _is_ln_2(loss) else f"{loss:.4f}"


def _check_gradients(
    reporter: Reporter, inputs: RunInputs, gradients: Mapping[str, Tensor]
) -> None:
    """Check that every weight that can learn from these pairs has a gradient."""
    architecture = inputs.weights.architecture
    embedding = gradients.get(EMBEDDING)
    # A tied head is the embedding itself, and must not count twice.
    gradients = {
        name: gradient
        for name, gradient in gradients.items()
        if (name != HEAD or gradient is not embedding) and inputs.trainable.has_first_gradient(name)
    }
    norm = math.sqrt(
        sum(
            to_float64_device(gradient).double().square().sum().item()
            for gradient in gradients.values()
        )
    )
    # With float16 the scaler skips steps whose scaled gradients overflow, which is no error.
    if not math.isfinite(norm) and inputs.device.dtype != torch.float16:
        remedy = "Use another train.dtype, or check these weights."
        reporter.error("gradient-overflow", "", f"the norm of the gradient is {norm}", remedy)
        return
    zero = {name for name, gradient in gradients.items() if not gradient.any()}
    # Experts to which no token was routed have no gradient, which is no error either.
    experts = {name: match[1] for name in gradients if (match := _EXPERT.match(name))}
    idle = set(experts.values()) - {experts[name] for name in experts if name not in zero}
    missing = [name for name in gradients if name in zero and experts.get(name) not in idle]
    # If the weight of the only expert is always 1, the router's gradient is zero or rounding noise.
    if is_router_constant := (
        architecture.has_constant_expert_weights and not inputs.router_aux_loss_coef
    ):
        missing = [name for name in missing if not name.endswith(_ROUTER)]
    of_what = " of the adapter that get one in the first step" if inputs.profile.lora.is_on else ""
    message = (
        f"a gradient in {len(gradients) - len(zero)} of {len(gradients)} tensors{of_what}, norm"
        f" {norm:.3g}"
    )
    if idle:
        message += f"; {len(idle)} of {len(set(experts.values()))} experts got no token"
    if missing:
        named = ", ".join(missing[:_NAMED_TENSORS])
        named += ", ..." if len(missing) > _NAMED_TENSORS else ""
        reporter.error(
            "gradient-missing",
            "",
            f"{message}; none in {named}",
            "These weights cannot learn. Check that the file was saved completely.",
        )
    elif is_router_constant:
        reporter.warn(
            "router-untrained",
            "train.router_aux_loss_coef",
            f"{message}; the routers learn nothing: with one expert per token, whose weight is"
            " always 1, only the auxiliary loss trains them",
            f"Set train.router_aux_loss_coef = {architecture.default_router_aux_loss_coef:g}.",
        )
    else:
        reporter.ok("gradients", "", message)
