"""Arithmetic of memory, against models of transformers and quantized layers of bitsandbytes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from dpo_cli.models.adapter import new_adapter
from dpo_cli.models.huggingface import HuggingFace
from dpo_cli.models.loading import build_model
from dpo_cli.models.memory import (
    MemoryNeed,
    ModelSize,
    model_size,
    need,
    optimizer_bytes,
    weight_bytes,
)
from dpo_cli.profile.lora import Lora
from dpo_cli.profile.model import Quantization
from dpo_cli.profile.train import Train
from tests.support import families
from tests.support.adapters import MODELS, start_weights

QWEN3_8B = HuggingFace(
    {
        "model_type": "qwen3",
        "vocab_size": 151_936,
        "hidden_size": 4096,
        "intermediate_size": 12_288,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "tie_word_embeddings": False,
    },
    {},
)
"""The settings of Qwen/Qwen3-8B that decide its size."""


@pytest.mark.parametrize("name", MODELS)
def test_a_configuration_alone_gives_the_number_of_weights(name: str) -> None:
    weights = start_weights(name)
    size = model_size(weights.architecture)
    assert size.parameters == weights.parameters
    assert len(size.linear) == 14
    assert weight_bytes(size, None) == 4 * weights.parameters


@pytest.mark.parametrize("family", ["gemma", "qwen2", "gpt2", "phi-head-bias"])
def test_heads_embeddings_and_biases_are_counted_once(family: str) -> None:
    model = families.build(family)
    size = model_size(HuggingFace(model.config.to_dict(), {}))
    assert size.parameters == sum(each.numel() for each in model.parameters())


def held_bytes(values: Any) -> int:
    """Bytes of all tensors in an object and its attributes, each counted once."""
    seen: dict[int, int] = {}

    def visit(value: Any) -> None:
        if isinstance(value, Tensor):
            seen[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        state = getattr(value, "quant_state", None) or getattr(value, "state2", None)
        if state is not None:
            visit(state)
        for name in ("absmax", "weight", "scales"):
            if (part := getattr(value, name, None)) is not None:
                visit(part)

    for value in values:
        visit(value)
    return sum(seen.values())


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_quantized_layers_take_the_bytes_that_are_counted(quantization: Quantization) -> None:
    pytest.importorskip("bitsandbytes")
    weights = start_weights("llama")
    model = build_model(weights.architecture, weights.state, quantization=quantization)
    size = model_size(weights.architecture)
    layers = [
        module
        for module in model.modules()
        if type(module).__name__ in ("Linear4bit", "Int8Linear")
    ]
    assert len(layers) == len(size.linear)
    assert held_bytes(layers) == weight_bytes(size, quantization) - 4 * size.others


def test_bytes_of_a_weight() -> None:
    size = ModelSize(((1024, 4096),), 10)
    weights = 1024 * 4096
    assert size.parameters == weights + 10
    assert weight_bytes(size, None) == 4 * weights + 40
    assert weight_bytes(size, "int8") == weights + 4 * 1024 + 40
    assert weight_bytes(size, "nf4") == weights // 2 + weights // 64 + weights // 4096 + 40
    assert optimizer_bytes(100, Train()) == 1200
    assert weight_bytes(size, None, "bfloat16") == 2 * weights + 20
    assert optimizer_bytes(100, Train(), "bfloat16") == 800
    assert optimizer_bytes(100, Train(kahan_summation=True)) == 2000
    assert optimizer_bytes(100, Train(optimizer="sgd")) == 400
    assert optimizer_bytes(100, Train(optimizer="adamw8bit")) == 700


def needed(**changes: Any) -> MemoryNeed:
    settings = {
        "train": Train(activation_checkpointing=True),
        "quantization": None,
        "adapter_parameters": None,
        "dtype": torch.bfloat16,
        "tokens": 1024,
        "scored_tokens": 1024,
        **changes,
    }
    return need(QWEN3_8B, model_size(QWEN3_8B), **settings)


def test_eight_billion_parameters() -> None:
    """The figures of docs/scaling.md."""
    adapter = new_adapter(QWEN3_8B, Lora(rank=16), seed=1).parameters
    assert adapter == 43_646_976
    assert model_size(QWEN3_8B).parameters == 8_190_735_360
    full = needed(reference_parameters=8_190_735_360)
    assert full.state == (16 + 4) * 8_190_735_360
    plain, small, smallest = (
        needed(adapter_parameters=adapter, quantization=each) for each in (None, "int8", "nf4")
    )
    assert [round(each.total / 1e9, 1) for each in (full, plain, small, smallest)] == [
        *(166.3, 36.0, 15.3, 12.0)
    ]
    assert smallest.optimizer == 12 * adapter
    assert smallest.dequantized == 4 * 4096 * 12_288
    assert smallest.total == math.fsum(
        (
            *(smallest.state, smallest.dequantized, smallest.activations, smallest.head),
            smallest.process,
        )
    )


def test_what_changes_activations_and_head() -> None:
    base = needed()
    assert needed(tokens=2048).activations == 2 * base.activations
    assert needed(train=Train()).activations > 10 * base.activations
    copy = 2 * 151_936 * 4096
    table = 4 * 151_936 * 1024
    assert base.head == table + copy
    assert needed(dtype=torch.float32).head == table
    assert needed(train=Train(layout="padded")).head == 3 * table + copy
