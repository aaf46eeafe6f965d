"""Library that multiplies float32 matrices on a CPU: MKL, or oneDNN where that is faster."""

from __future__ import annotations

import contextlib
from pathlib import Path

import torch

_MAX_FLOAT32_ERROR = 1e-5
"""Largest error of a product, relative to its largest element. Products in float32 stay below a
tenth of it; TF32 reaches 5e-4, bfloat16 more."""
_PROBED_SHAPES = ((1, 512, 512), (96, 64, 96), (700, 512, 1408), (512, 700, 640))
"""Rows, inner size and columns of typical products of a small model."""


def set_cpu_matmul(saved: str | None = None) -> None:
    """Choose the library of float32 products, by the processor alone.

    torch calls MKL under the precision "highest" and oneDNN under "medium". MKL takes slower code
    on processors that are not Intel's, unless they have AVX-512. "medium" also permits bfloat16, so
    it is taken only where products are proven to stay float32. Nothing is timed, because equal
    runs must choose the same library.

    Args:
        saved: the precision in the plan of a resumed run, which is kept; None at the start of one.
    """
    precision = saved or ("medium" if _mkl_is_slow() else "highest")
    torch.set_float32_matmul_precision(precision)
    if precision == "medium" and not _products_stay_float32():
        torch.set_float32_matmul_precision("highest")


def processor() -> list[str]:
    """Return model name and flags of the CPU; the bits of a product depend on them."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        return sorted({line for line in lines if line.startswith(("model name", "flags"))})
    return []


def _mkl_is_slow() -> bool:
    """Return True for an x86 processor of another vendor than Intel without AVX-512.

    On an AMD EPYC with AVX-512 (Zen 4), oneDNN takes 0.95 of MKL's time for a step of the 26M
    model, and 1.23 for one of the demo, whose products are small.
    """
    if not torch.backends.mkl.is_available():  # type: ignore[no-untyped-call]
        return False
    with contextlib.suppress(OSError):
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
        vendor = next((line for line in text.splitlines() if line.startswith("vendor_id")), "")
        return bool(vendor) and "GenuineIntel" not in vendor and "avx512f" not in text
    return False


def _products_stay_float32() -> bool:
    return all(_product_error(*shape) < _MAX_FLOAT32_ERROR for shape in _PROBED_SHAPES)


def _product_error(rows: int, inner: int, columns: int) -> float:
    """Return the largest error of a product and of its transposed, by the largest element."""
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(rows, inner, generator=generator)
    right = torch.randn(inner, columns, generator=generator)
    exact = left.double() @ right.double()
    errors = ((left @ right) - exact, (right.T @ left.T) - exact.T)
    return float(max(error.abs().max() for error in errors) / exact.abs().max())
