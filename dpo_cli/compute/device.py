"""Which device and number format a run uses, decided once and never silently otherwise."""

from __future__ import annotations

import contextlib
import ctypes
import os
from dataclasses import dataclass
from pathlib import Path

import torch

from dpo_cli.compute.matmul import choose_matmul
from dpo_cli.errors import DpoError

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
"""Number formats by the names that profiles use."""

# Of malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4


@dataclass(frozen=True)
class Device:
    """A device, and the type that autocast computes in; weights are float32 in any case."""

    device: torch.device
    dtype: torch.dtype

    @property
    def dtype_name(self) -> str:
        """Such as float32."""
        return str(self.dtype).removeprefix("torch.")

    @property
    def device_name(self) -> str:
        """The name of the hardware, for people."""
        if self.device.type == "cuda":
            return torch.cuda.get_device_name(self.device)
        threads = torch.get_num_threads()
        return f"CPU, {threads} thread" + "s" * (threads > 1)

    def peak_bytes(self) -> int:
        """The most memory that tensors have taken on the device so far; 0 on the CPU."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return 0

    def synchronize(self) -> None:
        """Wait until the device has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def autocast(self) -> contextlib.AbstractContextManager[None]:
        """The context of every forward."""
        if self.dtype not in (torch.bfloat16, torch.float16):
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.dtype)


def resolve(device: str, dtype: str, local_rank: int | None = None) -> Device:
    """Decide device and dtype from the profile's [train] keys.

    "auto" is CUDA where torch can use it, else the CPU; and bfloat16 on CUDA, float32 on the CPU.

    Args:
        device, dtype: as the profile has them.
        local_rank: this process's number among those that train together on this machine, and
            that of its card; None where it trains alone.

    Raises:
        DpoError: CUDA was asked for, or a card is there, and torch cannot use it.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() or _has_nvidia_card() else "cpu"
    if local_rank is not None and device.startswith("cuda:"):
        raise DpoError(
            f"train.device {device!r} names one card, and several ranks train",
            'state "cuda" or "auto": each rank takes the card of its number; which cards there'
            " are to take is said by CUDA_VISIBLE_DEVICES",
        )
    if local_rank is not None and device == "cuda":
        device = f"cuda:{local_rank}"
    if device.startswith("cuda"):
        _require_cuda(device)
    if dtype == "auto":
        dtype = "bfloat16" if device.startswith("cuda") else "float32"
    return Device(torch.device(device), DTYPES[dtype])


def process_bytes() -> int:
    """Memory this process holds right now."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def tune(compute: Device, float32_matmul: str | None = None, *, tf32: bool = False) -> None:
    """Process-wide settings under which this device is fastest with the same numbers.

    Args:
        compute: where.
        float32_matmul: what `choose_matmul` chose when the run began, so that a resume multiplies
            in the same way; None to choose now.
        tf32: that CUDA may round the factors of float32 products, as the profile says.
    """
    if compute.device.type == "cpu":
        keep_memory()
        choose_matmul(float32_matmul)
    else:
        # torch's word for TF32 on CUDA; `environment` of the plan says which it was.
        torch.set_float32_matmul_precision("high" if tf32 else "highest")


def keep_memory() -> None:
    """Let the C library keep what it was given back instead of returning it to the kernel.

    A step asks for the same large tables as the one before; mapped anew each time, every page of
    them would be cleared by the kernel first. Elsewhere than under glibc nothing happens.
    """
    with contextlib.suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, -1)
        mallopt(_M_TOP_PAD, 64 << 20)


def make_deterministic() -> None:
    """Only algorithms that give the same bits every time; on CUDA they cost speed."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)


def _has_nvidia_card() -> bool:
    return Path("/dev/nvidia0").exists()


def _require_cuda(device: str) -> None:
    remedy = 'state train.device = "cpu" to train on the processor'
    if torch.version.cuda is None:
        raise DpoError(
            f"train.device {device!r}: this torch ({torch.__version__}) was built without CUDA",
            f"install a CUDA build of torch, or {remedy}",
        )
    if not torch.cuda.is_available():
        raise DpoError(
            f"train.device {device!r}: torch {torch.__version__} (CUDA {torch.version.cuda}) finds"
            f" no card it can use (driver: {_driver()})",
            f"is the driver recent enough for CUDA {torch.version.cuda}? Or {remedy}",
        )
    index = torch.device(device).index or 0
    if index >= torch.cuda.device_count():
        raise DpoError(
            f"train.device {device!r}: there are {torch.cuda.device_count()} CUDA devices,"
            " counted from 0",
            "state one that exists",
        )
    try:
        torch.ones(1, device=device).add_(1).item()
    except RuntimeError as error:
        major, minor = torch.cuda.get_device_capability(index)
        raise DpoError(
            f"train.device {device!r}: {torch.cuda.get_device_name(index)} (sm_{major}{minor})"
            f" cannot run this torch ({torch.__version__}, built for"
            f" {' '.join(torch.cuda.get_arch_list())}): {str(error).splitlines()[0]}",
            f"install a build of torch for this card, or {remedy}",
        ) from error


def _driver() -> str:
    try:
        text = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8")
    except OSError:
        return "none loaded"
    return text.splitlines()[0].strip()
