"""What the run is to have: a device, steps, memory as far as it can be estimated, disk."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import torch

from dpo_cli.checks.reporter import Reporter
from dpo_cli.compute.device import Device, resolve
from dpo_cli.data.batching import make_batch
from dpo_cli.formatting import format_count, format_rate, format_size
from dpo_cli.models.loading import ModelWeights
from dpo_cli.models.spec import Architecture
from dpo_cli.profile.schema import Profile
from dpo_cli.profile.text import show_path
from dpo_cli.training.checkpointing import state_bytes
from dpo_cli.training.inputs import RunInputs

KEPT_CHECKPOINTS = 3
"""Two that are verified, and the one being written."""
BUSY_SHARE = 0.1


def check_device(reporter: Reporter, profile: Profile) -> Device:
    """The device of the profile; where that fails, the CPU, so that the rest can be looked at."""
    with reporter.errors_as("device-unusable", "train.device"):
        device = resolve(profile.train.device, profile.train.dtype)
        _note_device(reporter, device)
        return device
    return resolve("cpu", "float32")


def check_plan(reporter: Reporter, inputs: RunInputs) -> None:
    """How many steps, and how fast."""
    order, rate, profile = inputs.order, inputs.learning_rate, inputs.profile
    held_out = ""
    if inputs.held_out:
        interval = profile.eval.interval
        between = f"every {interval:,} steps, " if interval else ""
        held_out = f"; {len(inputs.held_out):,} pairs held out, scored before, {between}and after"
    reporter.ok(
        "plan",
        "",
        f"{format_count(order.epochs, 'epoch')} x {order.micro_batches_per_epoch:,} micro-batches"
        f" of {order.batch_size} = {format_count(order.micro_batches, 'step')},"
        f" {format_count(order.optimizer_steps, 'update')};"
        f" learning rate {format_rate(rate.at(0))} at first,"
        f" {format_rate(rate.at(order.micro_batches - 1))} at last{held_out}",
    )


def check_disk(
    reporter: Reporter, profile: Profile, runs_root: Path, model_weights: ModelWeights | None
) -> int | None:
    """Whether runs can be written, and, where the size of the model is known, whether they fit.

    Returns:
        The most bytes that a run takes there; None where that is not known.
    """
    place = runs_root.absolute()
    while not place.exists():
        place = place.parent
    shown = show_path(runs_root)
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        problem = "may not be written in" if place.is_dir() else "is a file"
        reporter.error(
            "runs-dir-unusable",
            shown,
            f"runs are to lie here, but {show_path(place)} {problem}",
            "choose another place with --runs-dir or DPO_RUNS_DIR",
        )
        return None
    if model_weights is None:
        reporter.skip("disk", "weights")
        return None
    free = shutil.disk_usage(place).free
    parameters = model_weights.parameters
    state = state_bytes(parameters, profile.train)
    states = KEPT_CHECKPOINTS + profile.eval.keep_best
    needed = states * state + 2 * 4 * parameters
    message = (
        f"a run takes up to {format_size(needed)} ({states} states of {format_size(state)}:"
        f" {state // parameters} bytes a weight); {format_size(free)} free"
    )
    if needed < free:
        reporter.ok("disk", shown, message)
    else:
        reporter.error("disk-full", shown, message, "free some space, or choose another --runs-dir")
    return needed


def estimate_memory(inputs: RunInputs) -> tuple[int, int]:
    """Bytes of what stays and of what one forward adds, of the window with the longest pairs.

    What stays: weights, gradients and two moments, four bytes each, where updates use Kahan
    summation another two such, and the weights of a reference, in the packed layout for the first
    epoch. What a forward adds: the inputs that the backward pass of each operation keeps, and about
    three copies of the logits.
    """
    bytes_a_weight = 24 if inputs.profile.train.kahan_summation else 16
    state = bytes_a_weight * inputs.weights.parameters
    if inputs.profile.dpo.needs_reference:
        state += 4 * inputs.reference_weights.parameters
    tokens, size = inputs.pairs.computed_tokens, inputs.order.batch_size
    window = tokens.argsort(stable=True, descending=True).tolist()
    window = window[: size * inputs.order.accumulation_steps]
    micro_batches_here = inputs.batches.micro_batches(
        [window[n : n + size] for n in range(0, len(window), size)]
    )
    longest = inputs.pairs.select(
        max(
            (forward.indices for forward in micro_batches_here),
            key=lambda its: int(tokens[list(its)].sum()),
        )
    )
    batch = make_batch(
        longest,
        inputs.profile.train.layout,
        max_seq_len=inputs.profile.data.max_seq_len,
        share_prompts=not inputs.profile.model.dropout,
    )
    architecture = inputs.weights.architecture
    logits = batch.computed_tokens
    if inputs.profile.train.layout == "packed":
        logits = int(longest.response_tokens.sum())
    width = 4 if inputs.device.dtype == torch.float32 else 2.5  # norms and logits stay float32
    layers, kept = architecture.num_hidden_layers, _kept_by_a_layer(architecture)
    if inputs.profile.train.activation_checkpointing:
        numbers = layers * architecture.hidden_size + kept  # what goes into each, and one at work
    else:
        numbers = layers * kept
    per_token = numbers * width
    head = logits * architecture.vocab_size * 3 * 4
    return state, round(batch.computed_tokens * per_token) + head


def free_memory(device: Device) -> int:
    """Bytes that nobody uses on the device."""
    if device.type == "cuda":
        ours = torch.cuda.memory_reserved(device.torch_device)
        return torch.cuda.mem_get_info(device.torch_device)[0] + ours
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    facts = dict(line.split(":", 1) for line in lines)
    return int(facts["MemAvailable"].split()[0]) * 1024


def _kept_by_a_layer(architecture: Architecture) -> int:
    """Numbers that the backward pass keeps of one token in one layer."""
    hidden = architecture.hidden_size
    queries = architecture.num_attention_heads * architecture.head_dim
    keys = architecture.num_key_value_heads * architecture.head_dim
    norms = 2 * 2 * hidden  # each keeps its input, and the normed copy that follows
    attention = 2 * queries + 2 * keys + 3 * queries + queries  # rotary, repeated keys, result
    feed_forward = 4 * architecture.intermediate_size + hidden
    return norms + attention + architecture.ffn_blocks_per_token * feed_forward


def _note_device(reporter: Reporter, device: Device) -> None:
    free = free_memory(device)
    subject = device.name
    if device.type == "cpu":
        reporter.ok("device", subject, f"{device.dtype_name}; {format_size(free)} of memory free")
        return
    total = torch.cuda.mem_get_info(device.torch_device)[1]
    others = total - free
    message = f"{device.dtype_name}; {format_size(free)} of {format_size(total)} free"
    if others < BUSY_SHARE * total:
        reporter.ok("device", subject, message)
    else:
        reporter.warn(
            "device-busy",
            subject,
            f"{message}: others hold {format_size(others)} of the card",
            "see who with nvidia-smi; on a shared card a run is slower, and may run out of memory",
        )
