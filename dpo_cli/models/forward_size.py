"""Default of `train.max_tokens_per_forward`, and estimates of the memory that it is based on."""

from __future__ import annotations

from dpo_cli.compute.device import Device
from dpo_cli.compute.memory import free_memory
from dpo_cli.models.loading import ModelWeights
from dpo_cli.models.memory import (
    activation_bytes_per_token,
    model_size,
    optimizer_bytes,
    weight_bytes,
)
from dpo_cli.models.trainable import Trainable, trainable_of
from dpo_cli.profile.model import WEIGHT_BYTES
from dpo_cli.profile.schema import Profile

CPU_TOKENS_PER_FORWARD = 2048
"""Default on a CPU: larger activations do not fit its caches."""
EVALUATION_FACTOR = 4
"""Ratio of the tokens per forward without and with gradients, on an accelerator."""
LEAST_TOKENS_PER_FORWARD, _MOST = 1 << 10, 1 << 16
"""Bounds on an accelerator; from the upper one on, kernel launches are a small part of the time."""
_ACTIVATIONS_SHARE = 0.5
"""Share of the memory beside the training state that the activations of one forward may take; the
rest is for the head, for fragments, and for sequences that are longer than the average."""


def default_max_tokens_per_forward(
    device: Device,
    weights: ModelWeights,
    reference: ModelWeights,
    profile: Profile,
    world_size: int = 1,
) -> int:
    """Return the default of `train.max_tokens_per_forward`.

    On an accelerator each operation takes the CPU some microseconds to start, so few large forwards
    are the fastest. The default depends on the memory that is free now. The grouping into forwards
    changes the last bits of a run, so a resumed run uses the number in its plan.

    Args:
        device: device without the models, which are loaded later.
        weights, reference: of policy and reference.
        profile: its [train] table decides what a forward keeps.
        world_size: number of ranks, which may share one model.
    """
    if device.type == "cpu":
        return CPU_TOKENS_PER_FORWARD
    trainable = trainable_of(profile, weights)
    state = training_bytes(trainable, profile)
    if trainable.at_start is None or reference is not weights:
        state += WEIGHT_BYTES[profile.model.weights_dtype] * reference.parameters
    if profile.launch.strategy == "shard":
        state //= world_size
    free = max(0, free_memory(device.torch_device) - state)
    per_token = activation_bytes_per_token(
        weights.architecture,
        device.dtype,
        is_checkpointed=profile.train.activation_checkpointing,
    )
    fits = int(free * _ACTIVATIONS_SHARE / per_token)
    return min(_MOST, max(LEAST_TOKENS_PER_FORWARD, 1 << max(0, fits.bit_length() - 1)))


def training_bytes(trainable: Trainable, profile: Profile) -> int:
    """Return the bytes of all weights of the policy, the gradients and the optimizer state."""
    quantization = trainable.start.quantization
    dtype = profile.model.weights_dtype
    weights = WEIGHT_BYTES[dtype] * (trainable.parameters + trainable.frozen_parameters)
    if quantization is not None:
        size = model_size(trainable.start.architecture)
        weights += weight_bytes(size, quantization) - weight_bytes(size, None)
    return weights + optimizer_bytes(trainable.parameters, profile.train, dtype)
