"""Float32 weights in two halves: bfloat16, which a model computes with, and the 16 bits below.

A bfloat16 number is a float32 number whose last 16 bits are zero. So a float32 weight takes 4 bytes
as before, and the first two of them are a weight in bfloat16 that needs no copy. The second half is
the *rest*: the difference of the bits as an int16, which an optimizer adds to again. Reconstruction
is exact, also in a checkpoint, whose weights are float32.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

_REST = "rest"
"""Attribute of a parameter in bfloat16, beside its gradient."""
_LARGEST_REST = torch.iinfo(torch.int16).max


def split(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the nearest bfloat16 numbers of float32 ones, and the rests.

    The only values that change are those in the middle between two bfloat16 numbers that round
    towards zero: their rest, 2^15, is one too many for an int16, and they lose one float32 spacing.
    """
    nearest = values.to(torch.bfloat16)
    rest = values.view(torch.int32) - nearest.float().view(torch.int32)
    return nearest, rest.clamp_(max=_LARGEST_REST).to(torch.int16)


def merge(nearest: Tensor, rest: Tensor) -> Tensor:
    """Return the float32 numbers of bfloat16 ones and their rests; the inverse of `split`."""
    return nearest.float().view(torch.int32).add_(rest).view(torch.float32)


def split_weights(model: PreTrainedModel, *, keeps_rests: bool) -> None:
    """Round the weights of a float32 model to bfloat16, to be computed under autocast.

    Vectors, which are norms and biases, stay in float32: they are few, and layer norms need the
    dtype of their input. The output of the embedding becomes float32, so that the sum of the blocks
    is float32 as it is with float32 weights.

    Args:
        model: on any device.
        keeps_rests: keep the rests beside the weights, to train them.
    """
    for parameter in model.parameters():
        if parameter.ndim < 2:
            continue
        parameter.data, rest = split(parameter.detach())
        if keeps_rests:
            setattr(parameter, _REST, rest)
    embedding: nn.Module = model.get_input_embeddings()
    embedding.register_forward_hook(_widen_output)


def rest_of(parameter: Tensor) -> Tensor | None:
    """Return the rest of a weight, on its device; None for a weight that is not split."""
    rest: Tensor | None = getattr(parameter, _REST, None)
    if rest is not None and rest.device != parameter.device:  # the model has been moved
        rest = rest.to(parameter.device)
        setattr(parameter, _REST, rest)
    return rest


def full_weight(parameter: Tensor) -> Tensor:
    """Return the float32 value of a weight; a weight that is not split as it is."""
    rest = rest_of(parameter)
    return parameter if rest is None else merge(parameter.detach(), rest)


def _widen_output(module: nn.Module, arguments: Any, output: Tensor) -> Tensor:
    return output.float()
