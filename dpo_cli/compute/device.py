"""Device and dtype of a run, resolved once from the profile; never replaced silently."""

from __future__ import annotations

import contextlib
import ctypes
import os
from dataclasses import dataclass
from pathlib import Path

import torch

from dpo_cli.compute.matmul import set_cpu_matmul
from dpo_cli.errors import DpoError, first_line

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
"""Dtypes by their names in profiles."""

# Parameters of mallopt, from malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4


@dataclass(frozen=True)
class Device:
    """Device and computation dtype of a run. Weights are float32 in any case.

    Attributes:
        torch_device: the device of tensors.
        dtype: dtype in which autocast computes.
    """

    torch_device: torch.device
    dtype: torch.dtype

    @property
    def type(self) -> str:
        """Kind of the device: "cpu" or "cuda"."""
        return self.torch_device.type

    @property
    def dtype_name(self) -> str:
        """Name of the dtype, for example "float32"."""
        return str(self.dtype).removeprefix("torch.")

    @property
    def name(self) -> str:
        """Name of the hardware, for people."""
        if self.type == "cuda":
            return torch.cuda.get_device_name(self.torch_device)
        threads = torch.get_num_threads()
        return f"CPU, {threads} thread" + "s" * (threads > 1)

    def peak_bytes(self) -> int:
        """Return the peak memory of tensors on the device so far; 0 on a CPU."""
        if self.type == "cuda":
            return torch.cuda.max_memory_allocated(self.torch_device)
        return 0

    def synchronize(self) -> None:
        """Wait until the device has finished its queued work."""
        if self.type == "cuda":
            torch.cuda.synchronize(self.torch_device)

    def autocast(self) -> contextlib.AbstractContextManager[None]:
        """Return the context in which forwards run."""
        if self.dtype not in (torch.bfloat16, torch.float16):
            return contextlib.nullcontext()
        return torch.autocast(self.type, self.dtype)


def resolve(device: str, dtype: str, local_rank: int | None = None) -> Device:
    """Resolve `train.device` and `train.dtype`.

    "auto" selects CUDA if there is a card, else the CPU; and bfloat16 on CUDA, float32 on a CPU.

    Args:
        device, dtype: the keys of the profile.
        local_rank: rank on this machine, which is also the index of its card; None for a process
            that trains alone.

    Raises:
        DpoError: CUDA is required, or a card is present, and torch cannot use it.
    """
    # A card that torch cannot use is an error: training on the CPU instead would go unnoticed.
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() or _has_nvidia_card() else "cpu"
    if local_rank is not None and device.startswith("cuda:"):
        raise DpoError(
            f"train.device {device!r} names one card, and several ranks train",
            'Set train.device to "cuda" or "auto": each rank uses the card of its local rank.'
            " CUDA_VISIBLE_DEVICES selects the cards.",
        )
    if local_rank is not None and device == "cuda":
        device = f"cuda:{local_rank}"
    if device.startswith("cuda"):
        _require_cuda(device)
    if dtype == "auto":
        dtype = "bfloat16" if device.startswith("cuda") else "float32"
    return Device(torch.device(device), DTYPES[dtype])


def process_bytes() -> int:
    """Return the resident memory of this process."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def configure_device(
    device: Device, float32_matmul: str | None = None, *, tf32: bool = False
) -> None:
    """Set the process-wide options of torch for this device.

    Args:
        device: where to compute.
        float32_matmul: precision in the plan of a resumed run; None at the start of one.
        tf32: let CUDA round the factors of float32 products to TF32, as `train.tf32` allows.
    """
    if device.type == "cpu":
        keep_memory()
        set_cpu_matmul(float32_matmul)
    else:
        # "high" is torch's name of TF32 on CUDA.
        torch.set_float32_matmul_precision("high" if tf32 else "highest")


def keep_memory() -> None:
    """Let the C library keep freed memory instead of returning it to the kernel.

    Each step allocates the same large tensors again; the kernel would clear every page of a new
    mapping. Does nothing with another C library than glibc.
    """
    with contextlib.suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_MAX, 0)  # no separate mappings, which are returned when freed
        mallopt(_M_TRIM_THRESHOLD, -1)  # never shrink the heap
        mallopt(_M_TOP_PAD, 64 << 20)  # grow it in steps of 64 MiB


def make_deterministic() -> None:
    """Use only algorithms that give the same bits every time; slower on CUDA."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)


def _has_nvidia_card() -> bool:
    return Path("/dev/nvidia0").exists()


def _require_cuda(device: str) -> None:
    remedy = 'set train.device = "cpu" to train on the processor'
    if torch.version.cuda is None:
        raise DpoError(
            f"train.device {device!r}: this torch ({torch.__version__}) was built without CUDA",
            f"Install a CUDA build of torch, or {remedy}.",
        )
    if not torch.cuda.is_available():
        raise DpoError(
            f"train.device {device!r}: torch {torch.__version__} (CUDA {torch.version.cuda}) finds"
            f" no card it can use (driver: {_driver()})",
            f"Install a driver for CUDA {torch.version.cuda} or later, or {remedy}.",
        )
    index = torch.device(device).index or 0
    if index >= torch.cuda.device_count():
        raise DpoError(
            f"train.device {device!r}: this machine has {torch.cuda.device_count()} CUDA devices",
            f"Choose a device from 0 to {torch.cuda.device_count() - 1}.",
        )
    try:
        torch.ones(1, device=device).add_(1).item()
    except RuntimeError as error:
        major, minor = torch.cuda.get_device_capability(index)
        raise DpoError(
            f"train.device {device!r}: {torch.cuda.get_device_name(index)} (sm_{major}{minor})"
            f" cannot run this torch ({torch.__version__}, built for"
            f" {' '.join(torch.cuda.get_arch_list())}): {first_line(error)}",
            f"Install a build of torch for this card, or {remedy}.",
        ) from error


def _driver() -> str:
    try:
        text = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8")
    except OSError:
        return "none loaded"
    return text.splitlines()[0].strip()
