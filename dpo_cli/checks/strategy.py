"""Check of `launch.strategy`: memory of each rank as replicas and as shards, and communication."""

from __future__ import annotations

import math
from typing import Any

from dpo_cli.checks.reporter import Reporter
from dpo_cli.checks.resources import estimate_memory
from dpo_cli.compute.memory import free_memory
from dpo_cli.formatting import format_size
from dpo_cli.models.memory import MemoryNeed, model_size
from dpo_cli.training.inputs import RunInputs

_FLOAT32 = 4
_KEY = "launch.strategy"


def check_strategy(reporter: Reporter, inputs: RunInputs, world_size: int) -> dict[str, Any]:
    """Compare replicas and shards on `world_size` ranks; return the figures as plain values.

    Memory is arithmetic, as in `dpo check --quick`; bytes are those that each rank sends in a step.
    """
    need, profile = estimate_memory(inputs), inputs.profile
    flat = _FLOAT32 * inputs.trainable.parameters
    held = {"replicate": need.total + flat, "shard": shard_bytes(inputs, need, world_size)}
    share = (world_size - 1) / world_size
    forwards = forwards_of_a_step(inputs, world_size)
    sent = {
        # An all_reduce of a ring is a reduce_scatter and an all_gather.
        "replicate": round(2 * share * flat),
        # The weights for the forward and for the backward, and the gradients.
        "shard": round(3 * share * flat * forwards),
    }
    own, free = profile.launch.strategy, free_memory(inputs.device.torch_device)
    if inputs.device.type == "cpu":
        free //= world_size  # all ranks use the same memory
    message = "; ".join(
        f"{name}: {format_size(held[name])} and {format_size(sent[name])} sent per step"
        for name in held
    )
    message = f"each of {world_size} ranks as {message}; {format_size(free)} of memory left for it"
    fits = [name for name, size in held.items() if size <= free]
    if own in fits:
        remedy = 'Set launch.strategy = "replicate", which sends less.'
        if own == "shard" and "replicate" in fits and sent["shard"] > sent["replicate"]:
            reporter.warn("launch-strategy", _KEY, f"{message}: both fit", remedy)
        else:
            reporter.ok("launch-strategy", _KEY, message)
    elif fits:
        reporter.warn("launch-strategy", _KEY, message, f'Set launch.strategy = "{fits[0]}".')
    else:
        remedy = "Use more devices, or train an adapter: set lora.rank."
        reporter.warn("launch-strategy", _KEY, f"{message}: neither fits", remedy)
    return {"world_size": world_size, "bytes": held, "bytes_sent": sent, "free_bytes": free}


def needs_shards(inputs: RunInputs) -> bool:
    """Return True if the run is sharded and one device, as this process has, cannot train it."""
    is_sharded = inputs.profile.launch.strategy == "shard"
    free = free_memory(inputs.device.torch_device)
    return is_sharded and estimate_memory(inputs).total >= free


def shard_bytes(inputs: RunInputs, need: MemoryNeed, world_size: int) -> int:
    """Return the bytes of a rank that holds a shard of the model.

    Weights, gradients, moments and reference are divided. Beside them a rank holds embedding and
    head whole with their gradients, and two blocks: one at work, and one that is gathered ahead or
    whose gradients are on their way. In half precision without activation checkpointing the
    backward pass keeps a rounded copy of all weights.
    """
    architecture, train = inputs.weights.architecture, inputs.profile.train
    size = model_size(architecture)
    blocks = sum(map(math.prod, size.linear))
    block = blocks // architecture.num_hidden_layers
    gathered = _FLOAT32 * (2 * size.others + 3 * block)
    is_half = inputs.device.dtype.itemsize < _FLOAT32
    rounded = 0
    if is_half and not train.activation_checkpointing:
        rounded = inputs.device.dtype.itemsize * size.parameters
    own = need.state // world_size + gathered + rounded
    return own + need.activations + need.head + need.process


def forwards_of_a_step(inputs: RunInputs, world_size: int) -> int:
    """Return the number of forwards that each rank makes in the first step."""
    tokens = inputs.pairs.computed_tokens
    first = next(inputs.order.global_batches())
    limit = inputs.profile.train.max_tokens_per_forward or inputs.max_tokens_per_forward
    if not inputs.batches.can_regroup:
        return max(1, math.ceil(len(first.micro_batches) / world_size))
    total = sum(int(tokens[list(indices)].sum()) for indices in first.micro_batches)
    return max(1, math.ceil(total / world_size / limit))
