"""Copy of several tensors to a device in one transfer, because each transfer has a fixed cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_PINNED_TYPES = ("cuda",)
"""Types of devices that copy from pinned memory while the CPU continues."""
_ALIGNMENT = 16
"""Bytes at a multiple of which each tensor begins; a view needs a multiple of its item size."""


@dataclass(frozen=True)
class StagedTensors:
    """Tensors in one buffer of the host, ready for one copy to a device.

    Attributes:
        buffer: uint8, pinned if there is a device that copies from pinned memory.
        layout: for each tensor its first byte, dtype and shape.
    """

    buffer: Tensor
    layout: tuple[tuple[int, torch.dtype, torch.Size], ...]

    def to(self, device: torch.device) -> list[Tensor]:
        """Copy to a device without waiting for it, and return the tensors as views of the copy."""
        copy = self.buffer.to(device, non_blocking=device.type in _PINNED_TYPES)
        return [
            copy[start : start + dtype.itemsize * shape.numel()].view(dtype).view(shape)
            for start, dtype, shape in self.layout
        ]


def stage(tensors: Sequence[Tensor]) -> StagedTensors:
    """Gather tensors of any dtype from the CPU in one pinned buffer."""
    layout, size = [], 0
    for tensor in tensors:
        layout.append((size, tensor.dtype, tensor.shape))
        size += -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT
    # From pageable memory a copy above 64 KB blocks, whatever `non_blocking` says.
    is_pinned = torch.cuda.is_available()
    buffer = torch.empty(size, dtype=torch.uint8, pin_memory=is_pinned)
    for tensor, (start, _, _) in zip(tensors, layout, strict=True):
        flat = tensor.contiguous().flatten().view(torch.uint8)
        buffer[start : start + tensor.nbytes] = flat
    return StagedTensors(buffer, tuple(layout))


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor from the CPU to a device, without waiting for a CUDA GPU."""
    if device.type == "cpu":
        return tensor
    return stage([tensor]).to(device)[0]
