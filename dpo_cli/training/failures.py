"""Failures of torch that a user can act on."""

from __future__ import annotations

import torch

from dpo_cli.errors import DpoError, first_line

# Of torch's CPU allocator, and of oneDNN, which allocates when it creates a kernel.
_SYSTEM_MEMORY = ("can't allocate memory", "could not create a primitive")
_MEMORY_TEXTS = (
    *_SYSTEM_MEMORY,
    "out of memory",  # CUDA, its driver, NCCL ("Cuda failure 2 'out of memory'"), MPS, XPU
    "ALLOC_FAILED",  # CUBLAS_STATUS_ALLOC_FAILED, CUDNN_STATUS_ALLOC_FAILED
    "OUT_OF_HOST_MEMORY",  # XPU: UR_RESULT_ERROR_OUT_OF_HOST_MEMORY
    "OUT_OF_DEVICE_MEMORY",
    "hipErrorOutOfMemory",
)
"""Parts of error messages about a lack of memory."""


def explain(error: Exception) -> DpoError | None:
    """Translate an exception into an error with a remedy; None if it is a bug."""
    if is_out_of_memory(error):
        is_on_gpu = not isinstance(error, MemoryError) and not any(
            text in str(error) for text in _SYSTEM_MEMORY
        )
        return DpoError(
            f"out of memory: {first_line(error)}",
            "Set train.activation_checkpointing = true, or lower train.max_tokens_per_forward; with"
            " experts or dropout, lower train.batch_size and raise train.accumulation_steps. Or"
            " lower data.max_seq_len." + " nvidia-smi lists other programs on the GPU." * is_on_gpu,
        )
    if isinstance(error, OSError) and error.filename and not is_missing(error):
        return DpoError(
            f"{error.filename}: {error.strerror}",
            "Check the disk and its permissions, then continue with dpo resume.",
        )
    if isinstance(error, OSError) and error.filename:
        # The launcher has checked the files, but only on its own machine.
        return DpoError(
            f"{error.filename}: {error.strerror}",
            "Put the file there, readable for this user, on every machine that trains.",
        )
    if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
        return DpoError(
            f"torch.compile failed: {first_line(error)}",
            "Install what is missing (on a CPU a C++ compiler), or set train.compile = false.",
        )
    return None


def is_missing(error: OSError) -> bool:
    """Return True if a file does not exist or cannot be opened by this user."""
    return isinstance(error, FileNotFoundError | PermissionError)


def is_out_of_memory(error: Exception) -> bool:
    """Return True if the device, or the system, is out of memory."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    # torch raises its own class only where its allocator asks for GPU memory. Drivers, cuBLAS,
    # cuDNN and NCCL report their own requests in their own words.
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _MEMORY_TEXTS)
