"""Check that the longest batch fits into memory; if not, find a setting that does."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch

from dpo_cli.checks.reporter import Reporter
from dpo_cli.checks.resources import estimate_memory
from dpo_cli.checks.trial_trainer import Sample, TrialTrainer
from dpo_cli.compute.loss_scale import make_scaler
from dpo_cli.compute.memory import free_memory, peak_process_bytes
from dpo_cli.data.sampler import GlobalBatch
from dpo_cli.formatting import format_count, format_size
from dpo_cli.models.options import checkpoint_activations
from dpo_cli.profile.model import WEIGHT_BYTES
from dpo_cli.training.failures import is_out_of_memory
from dpo_cli.training.inputs import RunInputs


@dataclass(frozen=True)
class Peak:
    """Largest memory use so far: of the process, and of tensors on a GPU."""

    process_bytes: int
    device_bytes: int


def check_memory(reporter: Reporter, trial: TrialTrainer) -> Sample | None:
    """Take one real step on the longest batch of the run; return None if it does not fit.

    On a CPU, a step that is estimated not to fit is not tried, because the system would kill this
    or another process.
    """
    inputs, device = trial.inputs, trial.inputs.device
    free, estimated = free_memory(device.torch_device), estimate_memory(inputs).total
    available = f"{format_size(free)} of memory left on {device.torch_device}"
    if device.type == "cpu" and estimated >= free:
        remedy = _remedy(inputs, lambda other: estimate_memory(other).total < free)
        message = f"the longest batch needs an estimated {format_size(estimated)}; {available}"
        reporter.warn("memory-tight", "train.max_tokens_per_forward", message, remedy)
        return None
    if (sample := _try_longest(trial, inputs)) is not None:
        return sample
    remedy = _remedy(inputs, lambda other: _try_longest(trial, other) is not None)
    message = f"out of memory in a real step on the longest batch; {available}"
    reporter.error("memory-out", "train.max_tokens_per_forward", message, remedy)
    return None


def measure_peak(reporter: Reporter, trial: TrialTrainer, *, reference_is_cached: bool) -> Peak:
    """Report the largest memory use so far, after real steps on the longest batch and on others.

    With `reference_is_cached` a run does not load the reference, so its weights do not count.
    """
    inputs, device = trial.inputs, trial.inputs.device
    is_cpu = device.type == "cpu"
    is_loaded = reference_is_cached and not inputs.policy_is_reference
    width = WEIGHT_BYTES[inputs.profile.model.weights_dtype]
    reference = width * inputs.reference_weights.parameters if is_loaded else 0
    process, on_device = peak_process_bytes(), device.peak_bytes()
    peak = Peak(process - reference if is_cpu else process, max(0, on_device - reference))
    [longest] = longest_global_batch(inputs).micro_batches
    tokens = sum(inputs.pairs.computed_tokens[list(longest)].tolist())
    needed = peak.process_bytes if is_cpu else peak.device_bytes
    free = free_memory(device.torch_device)
    reporter.ok(
        "memory",
        "",
        f"{format_size(needed)} at most in real steps, including the longest forward"
        f" ({format_count(len(longest), 'pair')}, {tokens:,} tokens); {format_size(free)} of memory"
        f" left on {device.torch_device}",
    )
    return peak


def longest_global_batch(inputs: RunInputs) -> GlobalBatch:
    """Return the micro-batch of the run with the most tokens, as a global batch of its own."""
    tokens = inputs.pairs.computed_tokens
    global_batches = inputs.order.global_batches()
    if not inputs.order.shuffle:  # all epochs are the same
        global_batches = (batch for batch in global_batches if batch.epoch == 0)
    indices = max(
        (
            micro_batch.indices
            for batch in global_batches
            for micro_batch in inputs.batches.micro_batches(batch.micro_batches)
        ),
        key=lambda indices: int(tokens[list(indices)].sum()),
    )
    return GlobalBatch(0, 0, (indices,))


def smaller(inputs: RunInputs) -> Iterator[tuple[RunInputs, str]]:
    """Yield runs of the same recipe with less memory and their settings, the fastest first."""
    yield from _smaller_batches(inputs)
    if not inputs.profile.train.activation_checkpointing:
        setting = "train.activation_checkpointing = true"
        checkpointed = _with(inputs, activation_checkpointing=True)
        yield checkpointed, setting
        for other, settings in _smaller_batches(checkpointed):
            yield other, f"{setting} and {settings}"


def _smaller_batches(inputs: RunInputs) -> Iterator[tuple[RunInputs, str]]:
    """Yield the same optimizer steps in smaller micro-batches."""
    tokens = inputs.pairs.computed_tokens
    [longest] = longest_global_batch(inputs).micro_batches
    if inputs.batches.can_regroup:
        longest_pair = int(tokens.max())
        limit = int(tokens[list(longest)].sum()) // 2
        limits = []
        while limit > longest_pair:
            limits.append(limit)
            limit //= 2
        if len(longest) > 1:
            limits.append(longest_pair)
        for limit in limits:
            yield (
                _with(inputs, max_tokens_per_forward=limit),
                f"train.max_tokens_per_forward = {limit}",
            )
        return
    train, order = inputs.profile.train, inputs.order
    for batch_size in range(order.batch_size - 1, 0, -1):
        if order.batch_size % batch_size:
            continue
        accumulation_steps = order.accumulation_steps * order.batch_size // batch_size
        settings = f"train.batch_size = {batch_size}"
        if train.global_batch_size is None:
            settings += f" and train.accumulation_steps = {accumulation_steps}"
        pairs = batch_size * accumulation_steps
        other = _with(inputs, batch_size=batch_size)
        other = replace(other, accumulation_steps=accumulation_steps)
        yield other, f"{settings} (still {pairs} pairs per step)"


def _with(inputs: RunInputs, **changes: object) -> RunInputs:
    profile = inputs.profile
    train = profile.train.model_copy(update=changes)
    return replace(inputs, profile=profile.model_copy(update={"train": train}))


def _remedy(inputs: RunInputs, fits: Callable[[RunInputs], bool]) -> str:
    for other, settings in smaller(inputs):
        if fits(other):
            return f"Set {settings}. This is the largest setting that fits."
    return "Lower data.max_seq_len, or use a smaller model: not even the longest pair alone fits."


def _try_longest(trial: TrialTrainer, inputs: RunInputs) -> Sample | None:
    """Take one step on the longest batch of `inputs`; return None if memory does not suffice."""
    trainer = replace(trial.trainer, inputs=inputs)
    if inputs.profile.train.activation_checkpointing:
        checkpoint_activations(trainer.policy.model)
    try:
        done, seconds = replace(trial, trainer=trainer).step(longest_global_batch(inputs))
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    else:
        return Sample(done.tokens, seconds)
    # Outside of `except`: the traceback holds all tensors of the failed step until the block ends.
    trainer.optimizer.zero_grad(set_to_none=True)
    # The step may have ended within the optimizer: half of its state, and a scaler in the middle of
    # a step, would make the next try fail.
    trainer.optimizer.state.clear()
    trial.trainer.scaler = make_scaler(inputs.device.torch_device, inputs.device.dtype)
    gc.collect()
    if inputs.device.type != "cpu":
        torch.get_device_module(inputs.device.torch_device).empty_cache()
    return None
