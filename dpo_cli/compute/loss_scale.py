"""Loss scale of float16, with a lower bound at which overflows are an error.

The scale starts at 65,536, so that small gradients do not become 0 in float16. Gradients of finite
losses may then overflow; torch's `GradScaler` skips the update and halves the scale.
"""

from __future__ import annotations

import torch

LEAST_SCALE = 1.0
"""Lowest scale: at 1 the loss is not enlarged, so an overflow has another cause. Halving further
would end at a scale of 0, which cannot grow again."""


def make_scaler(device: torch.device, dtype: torch.dtype) -> torch.amp.GradScaler:
    """Return the loss scaler of a run; it is enabled for float16 only."""
    return torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)


def can_halve(scaler: torch.amp.GradScaler) -> bool:
    """Return True if the scale may be halved after an overflow; waits for the device."""
    return scaler.is_enabled() and scaler.get_scale() / 2 >= LEAST_SCALE


def update_scale(scaler: torch.amp.GradScaler, *, is_skipped: bool) -> None:
    """Adapt the scale after a step; it never falls below `LEAST_SCALE`."""
    is_least = is_skipped and scaler.is_enabled() and not can_halve(scaler)
    scaler.update(LEAST_SCALE if is_least else None)
