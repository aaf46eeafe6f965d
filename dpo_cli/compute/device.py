"""Device and dtype of a run, resolved once from the profile; never replaced silently."""

from __future__ import annotations

import contextlib
import os
import platform
from dataclasses import dataclass
from pathlib import Path

import torch

from dpo_cli.compute.accelerator import capability, is_cuda
from dpo_cli.compute.matmul import set_cpu_matmul
from dpo_cli.errors import DpoError, first_line
from dpo_cli.formatting import format_count

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
"""Dtypes by their names in profiles."""

_OTHER_ACCELERATORS = ("mps", "xpu")
"""Devices of Apple and Intel that "auto" takes where there is no CUDA."""
_BUSY_TEXTS = ("out of memory", "busy or unavailable")
"""Parts of the errors of a GPU that is full, or in use in exclusive mode."""
_ALLOCATOR_VARIABLES = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
"""Settings of CUDA's allocator. The second is the newer name; older versions ignore it."""


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
        """Kind of the device: "cpu", "cuda" (also AMD's GPUs), "mps" or "xpu"."""
        return self.torch_device.type

    @property
    def dtype_name(self) -> str:
        """Name of the dtype, for example "float32"."""
        return str(self.dtype).removeprefix("torch.")

    @property
    def name(self) -> str:
        """Name of the hardware, for people."""
        if self.type == "mps":
            return f"Apple GPU ({platform.processor() or platform.machine()})"
        if self.type != "cpu":
            return str(
                torch.get_device_module(self.torch_device).get_device_name(self.torch_device)
            )
        threads = torch.get_num_threads()
        return f"CPU, {threads} thread" + "s" * (threads > 1)

    @property
    def versions(self) -> dict[str, str]:
        """Hardware and libraries on which the last bits of an accelerator depend; none for a CPU.

        Kernels differ between GPU models and between versions of cuBLAS and cuDNN.
        """
        if self.type == "cpu":
            return {}
        if not is_cuda(self.torch_device):
            return {"gpu": self.name}
        found = capability(self.torch_device)
        generation = f" sm_{found[0]}{found[1]}" if found else ""
        return {
            "gpu": f"{self.name}{generation}",
            "cuda": str(torch.version.cuda or torch.version.hip),
            "cudnn": str(torch.backends.cudnn.version()),  # type: ignore[no-untyped-call]
        }

    @property
    def emulates_dtype(self) -> bool:
        """Return True if a GPU computes the dtype without hardware for it."""
        if self.dtype != torch.bfloat16 or not is_cuda(self.torch_device):
            return False
        return not torch.get_device_module(self.torch_device).is_bf16_supported(
            including_emulation=False
        )

    def peak_bytes(self) -> int:
        """Return the peak memory of tensors so far; 0 on a CPU, and where torch counts none."""
        measure = getattr(torch.get_device_module(self.torch_device), "max_memory_allocated", None)
        return int(measure(self.torch_device)) if measure and self.type != "cpu" else 0

    def synchronize(self) -> None:
        """Wait until the device has finished its queued work."""
        if self.type != "cpu":
            torch.get_device_module(self.torch_device).synchronize()

    def autocast(self) -> contextlib.AbstractContextManager[None]:
        """Return the context in which forwards run."""
        if self.dtype not in (torch.bfloat16, torch.float16):
            return contextlib.nullcontext()
        return torch.autocast(self.type, self.dtype)


def resolve(device: str, dtype: str, local_rank: int | None = None) -> Device:
    """Resolve `train.device` and `train.dtype`.

    "auto" selects CUDA if there is a GPU of NVIDIA or AMD, else another accelerator that torch
    finds, else the CPU. Its dtype is bfloat16 on CUDA and XPU, or float16 on a GPU that only
    emulates bfloat16 (before compute capability 8.0); on a CPU and on MPS float32.

    Args:
        device, dtype: the keys of the profile.
        local_rank: rank on this machine, which is also the index of its GPU; None for a process
            that trains alone.

    Raises:
        DpoError: CUDA is required, or a GPU is present, and torch cannot use it.
    """
    # A GPU that torch cannot use is an error: training on the CPU instead would go unnoticed.
    if device == "auto":
        device = _best_device()
    if local_rank is not None and device.startswith("cuda:"):
        raise DpoError(
            f"train.device {device!r} names one GPU, and several ranks train",
            'Set train.device to "cuda" or "auto": each rank uses the GPU of its local rank.'
            " CUDA_VISIBLE_DEVICES selects the GPUs.",
        )
    if local_rank is not None and device == "cuda":
        device = f"cuda:{local_rank}"
    if device.startswith("cuda"):
        _expand_segments()
        _require_cuda(device)
        # One name for the first GPU, whether one process trains or several do.
        device = "cuda:0" if device == "cuda" else device
        torch.cuda.set_device(device)
        # cuDNN's attention builds a plan for each new pair of lengths, up to a second each; torch
        # prefers it on compute capability 9.0 and 10.0.
        torch.backends.cuda.enable_cudnn_sdp(False)
    elif device != "cpu":
        _require_accelerator(device)
    if dtype == "auto":
        dtype = _fast_dtype(device)
    return Device(torch.device(device), DTYPES[dtype])


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
        set_cpu_matmul(float32_matmul)
    else:
        # "high" is torch's name of TF32 on CUDA.
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
        # Gradients of weights are sums over tokens, which cuBLAS splits among blocks of the GPU. By
        # default it may add up the partial sums in half precision.
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
        torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False


def make_deterministic() -> None:
    """Use only algorithms that give the same bits every time; slower on CUDA."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    # By default torch would fill every new tensor with NaN, one kernel each, to reveal code that
    # reads memory before it is written.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def _expand_segments() -> None:
    """Let CUDA's allocator grow its blocks of memory, unless the user has set it up.

    Batches differ in length at each step; freed memory would be cut into pieces that the next batch
    does not fit into. torch reads the variables when CUDA starts.
    """
    if not any(name in os.environ for name in _ALLOCATOR_VARIABLES):
        os.environ.update(dict.fromkeys(_ALLOCATOR_VARIABLES, "expandable_segments:True"))


def _best_device() -> str:
    if torch.cuda.is_available() or _has_nvidia_card():
        return "cuda"
    found = torch.accelerator.current_accelerator(check_available=True)
    return found.type if found is not None and found.type in _OTHER_ACCELERATORS else "cpu"


def _fast_dtype(device: str) -> str:
    if device.startswith("xpu"):
        return "bfloat16"
    if not device.startswith("cuda"):
        return "float32"
    # torch emulates bfloat16 on older GPUs, without tensor cores and fast attention.
    has_bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
    return "bfloat16" if has_bfloat16 else "float16"


def _has_nvidia_card() -> bool:
    return Path("/dev/nvidia0").exists()


def _require_cuda(device: str) -> None:
    remedy = 'set train.device = "cpu" to train on the processor'
    # torch built for AMD's ROCm also calls its GPUs "cuda".
    platform_version = torch.version.cuda or torch.version.hip
    if platform_version is None:
        raise DpoError(
            f"train.device {device!r}: this torch ({torch.__version__}) was built without CUDA",
            f"Install a build of torch for CUDA, or for ROCm on an AMD GPU, or {remedy}.",
        )
    platform_name = "CUDA" if torch.version.cuda else "ROCm"
    if not torch.cuda.is_available():
        raise DpoError(
            f"train.device {device!r}: torch {torch.__version__} ({platform_name}"
            f" {platform_version}) finds no GPU it can use (driver: {_driver()})",
            f"Install a driver for {platform_name} {platform_version} or later, or {remedy}.",
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
        name = torch.cuda.get_device_name(index)
        if any(text in str(error) for text in _BUSY_TEXTS):
            raise DpoError(
                f"train.device {device!r}: {name} cannot be opened: {first_line(error)}",
                "nvidia-smi lists the programs that use it. End them, or choose another GPU.",
            ) from error
        major, minor = torch.cuda.get_device_capability(index)
        raise DpoError(
            f"train.device {device!r}: {name} (sm_{major}{minor})"
            f" cannot run this torch ({torch.__version__}, built for"
            f" {' '.join(torch.cuda.get_arch_list())}): {first_line(error)}",
            f"Install a build of torch for this GPU, or {remedy}.",
        ) from error


def _require_accelerator(device: str) -> None:
    kind = torch.device(device).type
    module = getattr(torch, kind)
    if not module.is_available():
        raise DpoError(
            f"train.device {device!r}: torch {torch.__version__} finds no {kind.upper()} device",
            f'Install a build of torch with {kind.upper()}, or set train.device = "auto".',
        )
    if (torch.device(device).index or 0) >= module.device_count():
        raise DpoError(
            f"train.device {device!r}: this machine has"
            f" {format_count(module.device_count(), f'{kind.upper()} device')}",
            f'Set train.device = "{kind}", or choose a number below {module.device_count()}.',
        )


def _driver() -> str:
    try:
        text = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8")
    except OSError:
        return "none loaded"
    return text.splitlines()[0].strip()
