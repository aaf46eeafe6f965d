"""Frozen linear layers in 4 or 8 bits, with the quantization of bitsandbytes.

Only weights are rounded. Each product first dequantizes its weights, in training as in evaluation,
and once more in the backward pass, so that the reference has the bits of the policy. bitsandbytes'
own layers compute other numbers in evaluation on a CPU: `Linear4bit` in bfloat16 on processors that
have it, and `Linear8bitLt` with activations in 8 bits.
"""

from __future__ import annotations

import functools
import logging
import sys
from importlib import metadata
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from dpo_cli.errors import DpoError, first_line
from dpo_cli.profile.model import Quantization


@functools.cache
def load_bitsandbytes() -> ModuleType:
    """Import bitsandbytes.

    On some processors it asks the package `kernels` for a binary from the Hub, and prints a line if
    `kernels` is not installed. The binary is not needed here.
    """
    logger, hidden = logging.getLogger("bitsandbytes"), "kernels"
    level, before = logger.level, sys.modules.get(hidden)
    logger.setLevel(logging.ERROR)
    sys.modules[hidden] = None  # type: ignore[assignment]  # an import of it fails
    try:
        import bitsandbytes
    finally:
        logger.setLevel(level)
        del sys.modules[hidden]
        if before is not None:
            sys.modules[hidden] = before
    module: ModuleType = bitsandbytes
    return module


def quantizer_version(quantization: Quantization | None) -> dict[str, str]:
    """Return the version on which the last bits of quantized weights depend; {} without any."""
    return {} if quantization is None else {"bitsandbytes": metadata.version("bitsandbytes")}


def quantize(model: PreTrainedModel, quantization: Quantization) -> None:
    """Replace the linear layers of a model's blocks by frozen quantized ones, in place.

    Embeddings, norms, biases and the head are left as they are.

    Args:
        model: on the CPU.
        quantization: format.

    Raises:
        DpoError: the model has no such layer.
    """
    head = model.get_output_embeddings()
    names = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head
    ]
    if not names:
        raise DpoError(
            f'model.quantization = "{quantization}": {type(model).__name__} has no linear layers'
            " that bitsandbytes quantizes",
            "Remove the key.",
        )
    for name in names:
        parent, _, own = name.rpartition(".")
        setattr(
            model.get_submodule(parent), own, _quantized(model.get_submodule(name), quantization)
        )


def set_compute_dtype(model: nn.Module, dtype: torch.dtype) -> None:
    """Set the dtype in which the quantized layers of a model multiply."""
    layers: list[Any] = [each for each in model.modules() if hasattr(each, "compute_dtype")]
    for layer in layers:
        layer.compute_dtype = dtype


def require_kernels(quantization: Quantization, device: torch.device) -> None:
    """Check that bitsandbytes computes on a device.

    Raises:
        DpoError: it does not.
    """
    try:
        layer = _quantized(nn.Linear(64, 64), quantization).to(device)
        inputs = torch.ones(2, 64, device=device, requires_grad=True)
        layer(inputs).sum().backward()
    except Exception as error:  # a missing kernel, library or driver raises almost any exception
        raise DpoError(
            f'model.quantization = "{quantization}": bitsandbytes cannot compute on {device}'
            f" ({first_line(error)})",
            'Remove the key, or set train.device = "cpu".',
        ) from error


def _quantized(layer: nn.Module, quantization: Quantization) -> nn.Module:
    assert isinstance(layer, nn.Linear)
    return _nf4(layer) if quantization == "nf4" else Int8Linear(layer)


def _nf4(layer: nn.Linear) -> nn.Module:
    """Return a layer in NF4, whose scales are quantized, too (QLoRA, arXiv:2305.14314)."""
    modules: Any = load_bitsandbytes().nn
    packed: Any = modules.Linear4bit(
        layer.in_features, layer.out_features, bias=False, quant_type="nf4", device="meta"
    )
    packed.weight = modules.Params4bit(
        layer.weight.detach().float(), requires_grad=False, quant_type="nf4", module=packed
    ).to("cpu")
    packed.bias = layer.bias
    # Without a dtype, the layer takes that of its first input for all others.
    packed.compute_dtype, packed.compute_type_is_set = torch.float32, True
    packed.support_avx512bf16_for_cpu = False
    quantized: nn.Module = packed
    return quantized


class Int8Linear(nn.Linear):
    """Linear layer with int8 weights and one scale per row, as bitsandbytes quantizes them.

    Args:
        layer: layer to quantize.
    """

    scales: Tensor

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(layer.in_features, layer.out_features, bias=False, device="meta")
        functional: Any = load_bitsandbytes().functional
        rows, scales, _ = functional.int8_vectorwise_quant(layer.weight.detach().half())
        self.weight = nn.Parameter(rows, requires_grad=False)
        self.register_buffer("scales", scales, persistent=False)
        self.bias = layer.bias
        self.compute_dtype = torch.float32

    def forward(self, input: Tensor) -> Tensor:
        """Return input @ weight.T + bias in the dtype of `input`, (..., out_features)."""
        dtype = self.compute_dtype
        bias = None if self.bias is None else self.bias.to(dtype)
        product: Tensor = _Int8Product.apply(input.to(dtype), self.weight, self.scales, bias)  # type: ignore[no-untyped-call]
        return product.to(input.dtype)


class _Int8Product(torch.autograd.Function):
    """Product with dequantized weights, which the backward pass dequantizes again."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, rows: Tensor, scales: Tensor, bias: Any) -> Tensor:
        ctx.save_for_backward(rows, scales)
        return F.linear(input, _dequantized(rows, scales, input.dtype), bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        rows, scales = ctx.saved_tensors
        return gradient @ _dequantized(rows, scales, gradient.dtype), None, None, None


def _dequantized(rows: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    functional: Any = load_bitsandbytes().functional
    weight: Tensor = functional.int8_vectorwise_dequant(rows, scales)
    return weight.to(dtype)
