"""Arithmetic of memory: bytes of weights, optimizer state, activations and head."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
from torch import nn
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from dpo_cli.models.minimind import Shape
from dpo_cli.models.spec import Architecture
from dpo_cli.profile.model import WEIGHT_BYTES, Quantization, WeightsDtype
from dpo_cli.profile.train import Train, state_bytes_per_weight

_FLOAT32 = 4
_SCALE_BLOCK, _SCALES_BLOCK = 64, 256
"""Weights of a block of NF4, which has a scale of 1 byte; and scales of a block of its own, with a
scale of 4 bytes."""


@dataclass(frozen=True)
class ModelSize:
    """Weights of a model without its adapter.

    Attributes:
        linear: shapes of the linear layers in the blocks, (out_features, in_features).
        others: number of all other weights: embedding, head, norms, biases; tied ones counted once.
    """

    linear: tuple[Shape, ...]
    others: int

    @property
    def parameters(self) -> int:
        """Number of weights."""
        return sum(map(math.prod, self.linear)) + self.others


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes that training needs on its device.

    Attributes:
        weights: weights of the policy, and of an adapter that the reference computes with.
        optimizer: gradients, and state of the optimizer.
        reference: weights of a second model.
        dequantized: the largest layer, while it is dequantized.
        activations: inputs that the backward pass of one forward keeps.
        head: log-probs of all tokens of the vocabulary at the scored positions.
        process: libraries, data, and the weights as they were read, where the device is the CPU.
    """

    weights: int
    optimizer: int
    reference: int
    dequantized: int
    activations: int
    head: int
    process: int = 0

    @property
    def state(self) -> int:
        """Bytes that do not depend on the tokens of a forward."""
        return self.weights + self.optimizer + self.reference

    @property
    def total(self) -> int:
        """Sum of all parts."""
        return sum(getattr(self, part.name) for part in fields(self))


def model_size(architecture: Architecture) -> ModelSize:
    """Count the weights of a model that its configuration describes, without allocating them."""
    config = architecture.config()
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        model = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)](config)
    head = model.get_output_embeddings()
    linear = tuple(
        tuple(module.weight.shape)
        for module in model.modules()
        if isinstance(module, nn.Linear) and module is not head
    )
    total = sum(parameter.numel() for parameter in model.parameters())
    return ModelSize(linear, total - sum(map(math.prod, linear)))


def weight_bytes(
    size: ModelSize, quantization: Quantization | None, dtype: WeightsDtype = "float32"
) -> int:
    """Return the bytes of the weights of a model as it computes, without its adapter."""
    if dtype != "float32":
        return WEIGHT_BYTES[dtype] * size.parameters
    return _FLOAT32 * size.others + sum(_layer_bytes(each, quantization) for each in size.linear)


def optimizer_bytes(parameters: int, train: Train, dtype: WeightsDtype = "float32") -> int:
    """Return the bytes of gradients and optimizer state of trained weights.

    Kahan summation keeps a compensation, and while it updates a copy of the weights. Gradients of
    weights in bfloat16 take half as much, and the second halves of these weights the other half.
    """
    kahan = 2 * _FLOAT32 if train.kahan_summation else 0
    return (_FLOAT32 + state_bytes_per_weight(train.optimizer, dtype) + kahan) * parameters


def need(
    architecture: Architecture,
    size: ModelSize,
    *,
    train: Train,
    quantization: Quantization | None,
    weights_dtype: WeightsDtype = "float32",
    adapter_parameters: int | None,
    frozen_adapter_parameters: int = 0,
    reference_parameters: int = 0,
    dtype: torch.dtype,
    tokens: int,
    scored_tokens: int,
) -> MemoryNeed:
    """Return the bytes that training needs.

    Args:
        architecture: of the policy.
        size: its weights.
        train: table [train] of the profile.
        quantization: format of its linear layers.
        weights_dtype: dtype of its weights.
        adapter_parameters: trained weights of an adapter; None if all weights are trained.
        frozen_adapter_parameters: weights of an adapter that only the reference computes with.
        reference_parameters: weights of a second model, in `weights_dtype`.
        dtype: of the computation.
        tokens: of the largest forward.
        scored_tokens: positions of that forward whose log-probs are computed.
    """
    trained = size.parameters if adapter_parameters is None else adapter_parameters
    own = (adapter_parameters or 0) + frozen_adapter_parameters
    dequantized = max(map(math.prod, size.linear), default=0) if quantization else 0
    per_token = activation_bytes_per_token(
        architecture, dtype, is_checkpointed=train.activation_checkpointing
    )
    return MemoryNeed(
        weights=weight_bytes(size, quantization, weights_dtype) + _FLOAT32 * own,
        optimizer=optimizer_bytes(trained, train, weights_dtype),
        reference=WEIGHT_BYTES[weights_dtype] * reference_parameters,
        # In float32, and rounded to the dtype of the computation.
        dequantized=_FLOAT32 * dequantized,
        activations=round(tokens * per_token),
        head=head_bytes(architecture, scored_tokens, dtype, is_packed=train.layout == "packed"),
    )


def head_bytes(
    architecture: Architecture, scored_tokens: int, dtype: torch.dtype, *, is_packed: bool
) -> int:
    """Estimate the bytes of the head's logits and probabilities, float32.

    The packed layout keeps one table, the padded one about three (`dpo_cli.objective.logps`). In
    half precision there is a copy of the head's weights.
    """
    tables = 1 if is_packed else 3
    copy = 0 if dtype == torch.float32 else 2 * architecture.hidden_size
    return architecture.vocab_size * (tables * _FLOAT32 * scored_tokens + copy)


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


def _layer_bytes(shape: Shape, quantization: Quantization | None) -> int:
    weights = math.prod(shape)
    if quantization == "int8":
        return weights + _FLOAT32 * shape[0]
    if quantization == "nf4":
        scales = math.ceil(weights / _SCALE_BLOCK)
        return math.ceil(weights / 2) + scales + _FLOAT32 * math.ceil(scales / _SCALES_BLOCK)
    return _FLOAT32 * weights


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
