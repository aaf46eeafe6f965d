from __future__ import annotations

import errno
import os

import pytest
import torch

from dpo_cli.training.failures import explain

ON_GPU = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
    torch.AcceleratorError("CUDA error: out of memory"),
    RuntimeError("CUDA driver error: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("NCCL error: unhandled cuda error, Cuda failure 2 'out of memory'"),
    RuntimeError("HIP error: hipErrorOutOfMemory"),
    RuntimeError("MPS backend out of memory (MPS allocated: 17.9 GB)"),
    RuntimeError("level_zero backend failed with error: 39 (UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY)"),
]
ON_CPU = [
    MemoryError(),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
    RuntimeError("could not create a primitive"),  # oneDNN
]


@pytest.mark.parametrize("error", ON_GPU + ON_CPU)
def test_a_lack_of_memory_is_explained(error: Exception) -> None:
    explained = explain(error)
    assert explained is not None
    assert explained.message.startswith("out of memory: ")
    assert "train.max_tokens_per_forward" in explained.remedy
    assert "train.batch_size" in explained.remedy
    assert ("nvidia-smi" in explained.remedy) == (error in ON_GPU)


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES])
def test_an_error_of_the_disk_names_its_file(number: int) -> None:
    explained = explain(OSError(number, os.strerror(number), "weights.pth"))
    assert explained is not None
    assert explained.message == f"weights.pth: {os.strerror(number)}"


@pytest.mark.parametrize(
    "error", [RuntimeError("CUDA error: an illegal memory access"), ValueError("out of memory")]
)
def test_other_errors_are_not_a_lack_of_memory(error: Exception) -> None:
    assert explain(error) is None
