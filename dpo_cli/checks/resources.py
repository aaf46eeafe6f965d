"""Checks of device, number of steps and disk, and an estimate of the memory."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import torch

from dpo_cli.checks.reporter import Reporter
from dpo_cli.compute.device import Device, resolve
from dpo_cli.compute.memory import free_memory, total_memory
from dpo_cli.data.batching import make_batch
from dpo_cli.data.tokens import TokenizedPairs
from dpo_cli.formatting import format_count, format_rate, format_size
from dpo_cli.models.loading import ModelWeights
from dpo_cli.models.memory import MemoryNeed, ModelSize, model_size, need
from dpo_cli.models.quantized import require_kernels
from dpo_cli.models.trainable import trainable_of
from dpo_cli.profile.schema import Profile
from dpo_cli.profile.text import show_path
from dpo_cli.run.cpu_time import contention, contention_message, contention_remedy
from dpo_cli.training.checkpointing import state_bytes
from dpo_cli.training.inputs import RunInputs

KEPT_CHECKPOINTS = 3
"""Two verified checkpoints, and the one that is being written."""
BUSY_SHARE = 0.1
"""Smallest share of a GPU's memory in other processes at which the GPU counts as busy."""


def check_device(reporter: Reporter, profile: Profile) -> Device:
    """Open the device of the profile; if that fails, the CPU, so that other checks can run."""
    with reporter.errors_as("device-unusable", "train.device"):
        device = resolve(profile.train.device, profile.compute_dtype)
        if profile.model.quantization is not None:
            require_kernels(profile.model.quantization, device.torch_device)
        if device.type == "cpu" and profile.train.dtype in ("bfloat16", "float16"):
            reporter.warn(
                "dtype-slow",
                "train.dtype",
                f"{device.dtype_name} takes longer than float32 on a CPU without fast products in"
                " half precision, about twice as long where it was measured",
                'Set train.dtype = "auto", which is float32 on a CPU.',
            )
        _check_usage(reporter, device)
        return device
    return resolve("cpu", profile.model.weights_dtype)


def check_plan(reporter: Reporter, inputs: RunInputs) -> None:
    """Report the number of steps and the learning rate."""
    order, profile = inputs.order, inputs.profile
    held_out = ""
    if inputs.held_out:
        interval = profile.eval.interval
        is_within = 0 < interval < order.micro_batches
        between = f", every {interval:,} micro-steps" if is_within else ""
        held_out = (
            f"; {len(inputs.held_out):,} held-out pairs, evaluated at the start{between} and at the"
            " end"
        )
    tables = (profile.train, "train", "log_interval"), (profile.train, "train", "save_interval")
    never = [
        f"{name}.{key} = {getattr(table, key):,}"
        for table, name, key in (*tables, (profile.eval, "eval", "interval"))
        if key in table.model_fields_set and getattr(table, key) > order.micro_batches
    ]
    beyond = f"; longer than the run, so only its end counts: {', '.join(never)}" if never else ""
    reporter.ok(
        "plan",
        "",
        f"{format_count(order.epochs, 'epoch')} x {order.micro_batches_per_epoch:,} micro-batches"
        f" of {format_count(order.batch_size, 'pair')} ="
        f" {format_count(order.micro_batches, 'micro-step')},"
        f" {format_count(order.optimizer_steps, 'step')}; {_rates(inputs)}{held_out}{beyond}",
    )


def _rates(inputs: RunInputs) -> str:
    """Describe the learning rates of a run: first, largest, last, and steps whose rate is 0."""
    order, rate = inputs.order, inputs.learning_rate
    first, last = rate.at(0), rate.at(order.micro_batches - 1)
    peak = max(map(rate.at, range(order.micro_batches)))
    between = f" over {format_rate(peak)}" if peak > max(first, last) else ""
    idle, nothing = sum(not rate.at(step) for step in order.last_steps), ""
    if idle:
        changes = "changes" if idle == 1 else "change"
        nothing = f" ({format_count(idle, 'step')} at 0, which {changes} nothing)"
    return f"learning rate {format_rate(first)}{between} to {format_rate(last)}{nothing}"


def check_contention(reporter: Reporter, seconds: float, cpu_seconds: float, stolen: float) -> None:
    """Warn if other processes use the CPU that the real steps were computed on.

    Args:
        reporter: gets the finding.
        seconds, cpu_seconds: wall time, and CPU time of the main thread.
        stolen: share of the CPU time that the host of a virtual machine took.
    """
    times = contention(seconds, cpu_seconds)
    if times is not None:
        threads = torch.get_num_threads()
        reporter.warn(
            "cpu-contention",
            "train.threads",
            contention_message(times, stolen),
            contention_remedy(threads),
        )


def check_disk(
    reporter: Reporter, profile: Profile, runs_root: Path, model_weights: ModelWeights | None
) -> int | None:
    """Check that a run can be written, and that the disk has enough space.

    Returns:
        Maximum size of a run in bytes; None if it is unknown.
    """
    place = runs_root.absolute()
    while not place.exists():
        place = place.parent
    shown = show_path(runs_root)
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        problem = "is not writable" if place.is_dir() else "is a file"
        reporter.error(
            "runs-dir-unusable",
            shown,
            f"no runs can be written: {show_path(place)} {problem}",
            "Choose another directory with --runs-dir or DPO_RUNS_DIR.",
        )
        return None
    if model_weights is None:
        reporter.skip("disk", "weights")
        return None
    free = shutil.disk_usage(place).free
    parameters = trainable_of(profile, model_weights).parameters
    state = state_bytes(parameters, profile.train, profile.model.weights_dtype)
    states = KEPT_CHECKPOINTS + profile.eval.keep_best
    needed = states * state + 2 * 4 * parameters
    message = (
        f"a run takes up to {format_size(needed)} ({states} checkpoints of"
        f" {format_size(state)}, {state // parameters} bytes per weight, and the file of weights"
        f" that each save writes, too); {format_size(free)} free"
    )
    if needed < free:
        reporter.ok("disk", shown, message)
    else:
        reporter.error(
            "disk-full", shown, message, "Free some space, or choose another --runs-dir."
        )
    return needed


def estimate_memory(inputs: RunInputs) -> MemoryNeed:
    """Estimate the bytes of the training state, and of one forward of the longest pairs.

    The reference counts unless it is the policy without its adapter; in the packed layout it is
    needed during the first epoch.
    """
    weights, trainable, profile = inputs.weights, inputs.trainable, inputs.profile
    longest, tokens = longest_forward(inputs)
    has_reference = profile.dpo.needs_reference and not inputs.policy_is_reference
    size = ModelSize((), weights.parameters)
    if weights.quantization is not None:
        size = model_size(weights.architecture)
    return need(
        weights.architecture,
        size,
        train=profile.train,
        quantization=weights.quantization,
        weights_dtype=profile.model.weights_dtype,
        adapter_parameters=trainable.parameters if profile.lora.is_on else None,
        frozen_adapter_parameters=max(0, trainable.frozen_parameters - weights.parameters),
        reference_parameters=inputs.reference_weights.parameters if has_reference else 0,
        dtype=inputs.device.dtype,
        tokens=tokens,
        scored_tokens=(
            int(longest.response_tokens.sum()) if profile.train.layout == "packed" else tokens
        ),
    )


def longest_forward(inputs: RunInputs) -> tuple[TokenizedPairs, int]:
    """Return the pairs of the forward with the most tokens, and the number of those."""
    tokens, size = inputs.pairs.computed_tokens, inputs.order.batch_size
    global_batch = tokens.argsort(stable=True, descending=True).tolist()
    global_batch = global_batch[: size * inputs.order.accumulation_steps]
    micro_batches = inputs.batches.micro_batches(
        [global_batch[n : n + size] for n in range(0, len(global_batch), size)]
    )
    longest = inputs.pairs.select(
        max(
            (micro_batch.indices for micro_batch in micro_batches),
            key=lambda indices: int(tokens[list(indices)].sum()),
        )
    )
    batch = make_batch(
        longest,
        inputs.profile.train.layout,
        max_seq_len=inputs.profile.data.max_seq_len,
        share_prompts=not inputs.profile.has_dropout,
    )
    return longest, batch.computed_tokens


def _check_usage(reporter: Reporter, device: Device) -> None:
    free = free_memory(device.torch_device)
    subject = device.name
    if device.type == "cpu":
        reporter.ok("device", subject, f"{device.dtype_name}; {format_size(free)} of memory left")
        return
    if device.emulates_dtype:
        reporter.warn(
            "dtype-emulated",
            "train.dtype",
            f"{subject} computes {device.dtype_name} by emulation: slowly, and without fast"
            " attention",
            'Set train.dtype = "auto", which is float16 on this GPU.',
        )
    total = total_memory(device.torch_device)
    others = total - free
    message = f"{device.dtype_name}; {format_size(free)} of {format_size(total)} free"
    if others < BUSY_SHARE * total:
        reporter.ok("device", subject, message)
    else:
        reporter.warn(
            "device-busy",
            subject,
            f"{message}: other processes use {format_size(others)} of this GPU",
            "Run nvidia-smi to see them. On a shared GPU a run is slower, and may run out of"
            " memory.",
        )
