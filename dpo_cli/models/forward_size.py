"""Default of `train.max_tokens_per_forward`, and estimates of the memory that it is based on."""

from __future__ import annotations

import torch

from dpo_cli.compute.device import Device
from dpo_cli.compute.memory import free_memory
from dpo_cli.models.loading import ModelWeights
from dpo_cli.models.spec import Architecture
from dpo_cli.models.trainable import Trainable, trainable_of
from dpo_cli.profile.schema import Profile
from dpo_cli.profile.train import STATE_BYTES

CPU_TOKENS_PER_FORWARD = 2048
"""Default on a CPU: larger activations do not fit its caches."""
EVALUATION_FACTOR = 4
"""Ratio of the tokens per forward without and with gradients, on an accelerator."""
_LEAST, _MOST = 1 << 10, 1 << 16
"""Bounds on an accelerator; from the upper one on, kernel launches are a small part of the time."""
_ACTIVATIONS_SHARE = 0.5
"""Share of the memory beside the training state that the activations of one forward may take; the
rest is for the head, for fragments, and for sequences that are longer than the average."""


def default_max_tokens_per_forward(
    device: Device, weights: ModelWeights, reference: ModelWeights, profile: Profile
) -> int:
    """Return the default of `train.max_tokens_per_forward`.

    On an accelerator each operation takes the CPU some microseconds to start, so few large forwards
    are the fastest. The default depends on the memory that is free now. The grouping into forwards
    changes the last bits of a run, so a resumed run uses the number in its plan.

    Args:
        device: device without the models, which are loaded later.
        weights, reference: of policy and reference.
        profile: its [train] table decides what a forward keeps.
    """
    if device.type == "cpu":
        return CPU_TOKENS_PER_FORWARD
    trainable = trainable_of(profile, weights)
    state = training_bytes(trainable, profile)
    if trainable.at_start is None or reference is not weights:
        state += 4 * reference.parameters
    free = max(0, free_memory(device.torch_device) - state)
    per_token = activation_bytes_per_token(
        weights.architecture,
        device.dtype,
        is_checkpointed=profile.train.activation_checkpointing,
    )
    fits = int(free * _ACTIVATIONS_SHARE / per_token)
    return min(_MOST, max(_LEAST, 1 << max(0, fits.bit_length() - 1)))


def training_bytes(trainable: Trainable, profile: Profile) -> int:
    """Return the bytes of all weights of the policy, the gradients and the optimizer state.

    A trained weight has itself and its gradient of 4 bytes each, the state of the optimizer, and
    two more buffers of 4 bytes with Kahan summation; a frozen one has 4 bytes.
    """
    train = profile.train
    per_weight = 8 + STATE_BYTES[train.optimizer] + (8 if train.kahan_summation else 0)
    return per_weight * trainable.parameters + 4 * trainable.frozen_parameters


def activation_bytes_per_token(
    architecture: Architecture, dtype: torch.dtype, *, is_checkpointed: bool
) -> float:
    """Estimate the bytes per token that the blocks keep for the backward pass."""
    # Bytes per number: half precision still computes norms in float32.
    width = 4 if dtype == torch.float32 else 2.5
    layers, per_layer = architecture.num_hidden_layers, _numbers_per_layer(architecture)
    if is_checkpointed:
        # The input of each layer, and all numbers of the one layer that is recomputed.
        return (layers * architecture.hidden_size + per_layer) * width
    return layers * per_layer * width


def _numbers_per_layer(architecture: Architecture) -> int:
    """Count the numbers per token that the backward pass of one layer keeps."""
    hidden = architecture.hidden_size
    queries = architecture.num_attention_heads * architecture.head_dim
    keys = architecture.num_key_value_heads * architecture.head_dim
    norms = 2 * 2 * hidden  # each keeps its input and the normalized copy
    # Queries and keys before and after the rotary embedding, queries with the repeated keys and
    # values, and the result.
    attention = 2 * queries + 2 * keys + 3 * queries + queries
    feed_forward = 4 * architecture.intermediate_size + hidden
    return norms + attention + architecture.ffn_blocks_per_token * feed_forward
