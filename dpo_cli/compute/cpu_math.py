"""Elementary functions on a CPU: the same bits from the first call on."""

from __future__ import annotations

import torch

_MKL_FUNCTIONS = (
    *("acos", "asin", "atan", "cos", "erf", "erfc", "erfinv", "exp", "log", "log10", "log2", "sin"),
    *("sqrt", "tan", "tanh", "trunc"),
)
"""Functions that torch computes with MKL (`IMPLEMENT_VML_MKL` in its vml.h)."""


def settle_functions() -> None:
    """Call each elementary function once on one thread, before several threads call it.

    MKL before 2025.0 chooses the code of a function at its first call. If several threads make that
    call at once, one of them may compute its share with a less exact variant, once per process, and
    the loss has other bits (torch issue 188792). A tensor of one element is computed by one thread.
    Takes 0.04 s.
    """
    for dtype in (torch.float32, torch.float64):
        number = torch.full((1,), 0.5, dtype=dtype)
        for name in _MKL_FUNCTIONS:
            getattr(torch, name)(number)
