"""How the CPU comes to compute exp, log and the like: the same way from the first call on."""

from __future__ import annotations

import torch

_INTELS = (
    *("acos", "asin", "atan", "cos", "erf", "erfc", "erfinv", "exp", "log", "log10", "log2", "sin"),
    *("sqrt", "tan", "tanh", "trunc"),
)
"""Those that torch has Intel's library compute (`IMPLEMENT_VML_MKL` in its vml.h)."""


def settle_functions() -> None:
    """Call each elementary function once, by one thread, before many of them call it.

    Intel's library (before 2025.0) chooses the code for a function when that is first called; where
    many threads do so at once, one may compute its whole share by code of half the digits, once in
    a process: a loss has other bits (torch's issue 188792). For one number there is but one thread.
    Takes 0.04 s, most of it to load what would be loaded anyway.
    """
    for dtype in (torch.float32, torch.float64):
        number = torch.full((1,), 0.5, dtype=dtype)
        for name in _INTELS:
            getattr(torch, name)(number)
