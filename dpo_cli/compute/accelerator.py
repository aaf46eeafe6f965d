"""Functions of torch for a device that is not the CPU, whatever its kind."""

from __future__ import annotations

import torch

_CUDA_TYPES = ("cuda",)
"""Device types with the kernels and functions of CUDA; torch also names AMD GPUs "cuda"."""


def is_cuda(device: torch.device) -> bool:
    """Return True for a GPU of NVIDIA or AMD."""
    return device.type in _CUDA_TYPES


def capability(device: torch.device) -> tuple[int, int] | None:
    """Return the compute capability of an NVIDIA GPU; None for any other device."""
    if not is_cuda(device) or torch.version.hip is not None:
        return None
    major, minor = torch.get_device_module(device).get_device_capability(device)
    return major, minor
