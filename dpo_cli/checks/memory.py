"""Whether the run fits into memory, by its longest batch; and what would fit where it does not."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from dpo_cli.checks.reporter import Reporter
from dpo_cli.checks.resources import estimate_memory, free_memory
from dpo_cli.checks.trial_trainer import TrialTrainer
from dpo_cli.data.sampler import GlobalBatch
from dpo_cli.formatting import format_size
from dpo_cli.models.loading import checkpoint_activations
from dpo_cli.training.failures import is_out_of_memory
from dpo_cli.training.inputs import RunInputs


@dataclass(frozen=True)
class Peak:
    """The most memory that a run was seen to take: of its process, and of tensors on a card."""

    process_bytes: int
    device_bytes: int


def try_longest(reporter: Reporter, trial: TrialTrainer) -> bool:
    """Make one real update on the longest batch of the run, where that is safe.

    On a CPU what is estimated not to fit is not tried: the system would end some process.

    Args:
        reporter: gets a finding where it does not fit.
        trial: makes the update.

    Returns:
        Whether it fits.
    """
    inputs, device = trial.inputs, trial.inputs.device
    free, estimated = free_memory(device), sum(estimate_memory(inputs))
    where = f"{format_size(free)} free on {device.torch_device}"
    if device.type == "cpu" and estimated >= free:
        remedy = _remedy(inputs, lambda other: sum(estimate_memory(other)) < free)
        message = (
            f"about {format_size(estimated)} for the longest batch, as far as can be estimated"
        )
        reporter.warn("memory-tight", "train.max_tokens_per_forward", f"{message}; {where}", remedy)
        return False
    if _fits(trial, inputs):
        return True
    remedy = _remedy(inputs, lambda other: _fits(trial, other))
    message = "out of memory at the longest batch, in one real step"
    reporter.error("memory-out", "train.max_tokens_per_forward", f"{message}; {where}", remedy)
    return False


def measure_peak(reporter: Reporter, trial: TrialTrainer, *, reference_is_known: bool) -> Peak:
    """The most memory so far, after real updates on the longest batch and on others.

    Args:
        reporter: gets the finding.
        trial: made the updates.
        reference_is_known: a run will find its log-probs in the cache, and not load the model.
    """
    inputs, device = trial.inputs, trial.inputs.device
    is_cpu = device.type == "cpu"
    model = 4 * inputs.reference_weights.parameters if reference_is_known else 0
    process, on_device = peak_process_bytes(), device.peak_bytes()
    peak = Peak(process - model if is_cpu else process, max(0, on_device - model))
    [longest] = longest_global_batch(inputs).micro_batches
    tokens = sum(inputs.pairs.computed_tokens[list(longest)].tolist())
    needed = peak.process_bytes if is_cpu else peak.device_bytes
    reporter.ok(
        "memory",
        "",
        f"{format_size(needed)} at most, in real steps, among them the longest batch"
        f" ({len(longest)} pairs, {tokens:,} tokens); {format_size(free_memory(device))} more are"
        f" free on {device.torch_device}",
    )
    return peak


def longest_global_batch(inputs: RunInputs) -> GlobalBatch:
    """The forward of the run with the most tokens, as a window of its own."""
    tokens = inputs.pairs.computed_tokens
    global_batches = inputs.order.global_batches()
    if not inputs.order.shuffle:
        global_batches = (w for w in global_batches if w.epoch == 0)
    indices = max(
        (
            forward.indices
            for window in global_batches
            for forward in inputs.batches.micro_batches(window.micro_batches)
        ),
        key=lambda indices: int(tokens[list(indices)].sum()),
    )
    return GlobalBatch(0, 0, (indices,))


def peak_process_bytes() -> int:
    """The most memory that this process ever held."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    [line] = [line for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024


def smaller(inputs: RunInputs) -> Iterator[tuple[RunInputs, str]]:
    """Runs of the same recipe that take less memory, and the keys to state, the best first."""
    train = inputs.profile.train
    yield from _portions(inputs)
    if not train.activation_checkpointing:
        key = "train.activation_checkpointing = true"
        frugal = _with(inputs, activation_checkpointing=True)
        yield frugal, key
        yield from ((other, f"{key} and {keys}") for other, keys in _portions(frugal))


def _portions(inputs: RunInputs) -> Iterator[tuple[RunInputs, str]]:
    """The same updates in smaller forwards."""
    tokens = inputs.pairs.computed_tokens
    [longest] = longest_global_batch(inputs).micro_batches
    if inputs.batches.can_regroup:
        least = int(tokens.max())
        limit = int(tokens[list(longest)].sum()) // 2
        while limit > least:
            yield (
                _with(inputs, max_tokens_per_forward=limit),
                f"train.max_tokens_per_forward = {limit}",
            )
            limit //= 2
        if len(longest) > 1:
            yield (
                _with(inputs, max_tokens_per_forward=least),
                f"train.max_tokens_per_forward = {least}",
            )
        return
    train, order = inputs.profile.train, inputs.order
    for batch_size in range(order.batch_size - 1, 0, -1):
        if order.batch_size % batch_size:
            continue
        accumulation_steps = order.accumulation_steps * order.batch_size // batch_size
        keys = f"train.batch_size = {batch_size}"
        if train.global_batch_size is None:
            keys += f" and train.accumulation_steps = {accumulation_steps}"
        pairs = batch_size * accumulation_steps
        other = _with(inputs, batch_size=batch_size)
        other = replace(other, accumulation_steps=accumulation_steps)
        yield other, f"{keys} (still {pairs} pairs an update)"


def _with(inputs: RunInputs, **changes: object) -> RunInputs:
    profile = inputs.profile
    train = profile.train.model_copy(update=changes)
    return replace(inputs, profile=profile.model_copy(update={"train": train}))


def _remedy(inputs: RunInputs, fits: Callable[[RunInputs], bool]) -> str:
    """The first change under which the run fits."""
    for other, keys in smaller(inputs):
        if fits(other):
            return f"{keys}: the largest that fits"
    return "lower data.max_seq_len: not even the longest pair alone fits; or use a smaller model"


def _fits(trial: TrialTrainer, inputs: RunInputs) -> bool:
    """Whether a real update on the longest batch goes through."""
    trainer = replace(trial.trainer, inputs=inputs)
    if inputs.profile.train.activation_checkpointing:
        checkpoint_activations(trainer.policy.model)
    try:
        trainer.take_step(longest_global_batch(inputs))
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    else:
        return True
    # Here the traceback, which holds what was computed, is gone.
    trainer.optimizer.zero_grad(set_to_none=True)
    gc.collect()
    if inputs.device.type == "cuda":
        torch.cuda.empty_cache()
    return False
